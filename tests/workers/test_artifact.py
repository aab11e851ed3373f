"""Artifacts: whole or not there, proved on opening, and never able to run or reach anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.errors import ArtifactError, ArtifactTamperedError, ModelLoadError
from headrace_workers import Prepared
from headrace_workers.artifacts import artifact
from headrace_workers.artifacts.artifact import (
    Source,
    VariantContent,
    is_artifact,
    open_artifact,
    sha256_of,
    write_artifact,
)
from headrace_workers.compression import build_artifact
from headrace_workers.engines.encoder import EncoderEngine

SOURCE = Source(name="somewhere", sha256="0" * 64)


@pytest.fixture(scope="session")
def packed_minilm(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as an artifact."""
    path = tmp_path_factory.mktemp("artifacts") / "minilm"
    build_artifact(minilm, path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An artifact of a few bytes."""
    path = tmp_path / "small"
    write(path)
    return path


def write(path: Path, **changed: Any) -> artifact.Artifact:
    settings: dict[str, Any] = {
        "task": "embedding",
        "source": SOURCE,
        "files": {"config.json": b"{}", "1_Pooling/config.json": b"{}"},
        "variants": {"int8": VariantContent({"a.weight": torch.ones(2, 3)}, {})},
    }
    return write_artifact(path, **{**settings, **changed})


def answers(engine: EncoderEngine, texts: list[str]) -> list[bytes]:
    items = [item for item in engine.prepare([(text, {}) for text in texts]) if isinstance(item, Prepared)]
    return [answer.data for answer in engine.run(items)]


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# -- what they are for ---------------------------------------------------------------------------------------


def test_a_model_becomes_an_artifact_a_quarter_of_its_size(packed_minilm: Path, minilm: Path) -> None:
    opened = open_artifact(packed_minilm)

    assert opened.manifest.task == "embedding"
    assert opened.manifest.variants == ["int8"]
    assert opened.manifest.source.sha256 == sha256_of(minilm / "model.safetensors")
    assert opened.manifest.lineage[0].startswith("quantize: int8")
    assert opened.manifest.tools["torch"] == torch.__version__
    size = sum(path.stat().st_size for path in packed_minilm.rglob("*.safetensors"))
    assert size < 0.3 * (minilm / "model.safetensors").stat().st_size


def test_an_artifact_answers_like_the_model_quantized_at_load(
    packed_minilm: Path, engine: EncoderEngine, sentences: list[str]
) -> None:
    stored = EncoderEngine(packed_minilm)

    assert (stored.info.variant, stored.info.task) == ("int8", "embedding")
    assert answers(stored, sentences[:20]) == answers(engine, sentences[:20])


def test_an_artifact_needs_nothing_but_itself(packed_minilm: Path, tmp_path: Path, sentences: list[str]) -> None:
    """It may be copied, and moved, and is the same."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(packed_minilm, copy)

    moved = EncoderEngine(copy, kernels="int8")

    assert moved.info.details["max_tokens"] == 256
    assert moved.info.details["pooling"] == "mean, normalize"
    assert len(answers(moved, sentences[:3])) == 3


@pytest.mark.parametrize("make", ["Roberta", "Electra", "ModernBert"])
def test_classifiers_become_artifacts_too(make: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"intermediate_size": 96} if make == "ModernBert" else {}
    folder = tiny_model(make, "ForSequenceClassification", **settings)
    build_artifact(folder, tmp_path / "made")
    stored, fresh = (EncoderEngine(path, kernels="int8") for path in (tmp_path / "made", folder))

    for engine in (stored, fresh):
        assert engine.info.task == "sequence_classification"
    items = [engine.prepare([("the mill wheel", {}), ("water", {})]) for engine in (stored, fresh)]
    assert stored.run(items[0]) == fresh.run(items[1])  # type: ignore[arg-type]


def test_an_artifact_is_for_one_task(packed_minilm: Path) -> None:
    with pytest.raises(ModelLoadError, match="made for embedding, not for token_classification"):
        EncoderEngine(packed_minilm, task="token_classification")
    with pytest.raises(ModelLoadError, match="compressed to int8"):
        EncoderEngine(packed_minilm, precision="fp32")
    with pytest.raises(ArtifactError, match="no variant 'int4'; it has int8"):
        EncoderEngine(packed_minilm, variant="int4")
    with pytest.raises(ModelLoadError, match="an artifact already"):
        build_artifact(packed_minilm, packed_minilm.parent / "again")


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    content = VariantContent({"a.weight": torch.ones(4)}, {})

    opened = write(tmp_path / "two", variants={"int8": content, "also": content})

    assert len(list((tmp_path / "two" / "blobs").iterdir())) == 1
    assert opened.tensors(opened.variant("also"))["a.weight"].tolist() == [1.0] * 4


# -- whole or not there --------------------------------------------------------------------------------------


def test_an_artifact_never_overwrites(small: Path) -> None:
    with pytest.raises(ArtifactError, match="exists"):
        write(small)


@pytest.mark.parametrize("fails_at", ["_manifest", "_written_variants", "_sync"])
def test_a_write_that_fails_leaves_nothing_that_looks_whole(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail, disks may fill: what is at the place is complete, or is not there."""

    def full_disk(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(artifact, fails_at, full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "new")
    monkeypatch.undo()

    if fails_at == "_sync":
        open_artifact(tmp_path / "new")
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_draft_is_no_artifact(tmp_path: Path) -> None:
    """What a killed writer leaves has another name, and no manifest."""
    draft = tmp_path / ".minilm.1234.tmp"
    draft.mkdir()
    (draft / "config.json").write_text("{}")

    assert not is_artifact(draft)
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        open_artifact(draft)


# -- proved on opening ---------------------------------------------------------------------------------------


def test_every_changed_byte_is_noticed_and_its_file_named(packed_minilm: Path, tmp_path: Path) -> None:
    for relative in open_artifact(packed_minilm).manifest.files:
        copy = tmp_path / relative.replace("/", "_")
        shutil.copytree(packed_minilm, copy, copy_function=os.link)
        content = bytearray((copy / relative).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / relative).unlink()
        (copy / relative).write_bytes(content)

        with pytest.raises(ArtifactTamperedError, match=relative.replace(".", r"\.")):
            open_artifact(copy)


def test_a_missing_file_is_named(small: Path) -> None:
    (small / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ArtifactTamperedError, match=r"1_Pooling/config\.json is missing"):
        open_artifact(small)


def test_a_truncated_file_is_named(small: Path) -> None:
    (blob,) = (small / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(ArtifactTamperedError, match="the manifest says"):
        open_artifact(small)


def test_a_file_too_many_is_named(small: Path) -> None:
    """A loader might read what nobody vouched for."""
    (small / "modeling.py").write_text("print('never run')")
    with pytest.raises(ArtifactTamperedError, match=r"modeling\.py is not in the manifest"):
        open_artifact(small)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../../outside", "a\\b", "./config.json", "manifest.json"]
)
def test_no_path_leads_out_of_an_artifact(path: str, small: Path) -> None:
    (small.parent / "outside").write_text("secret")
    edit_manifest(small, lambda manifest: manifest["files"].update({path: {"sha256": "0" * 64, "bytes": 6}}))
    with pytest.raises(ArtifactError, match="not a plain path inside"):
        open_artifact(small)


def test_no_link_leads_out_of_an_artifact(small: Path) -> None:
    outside = small.parent / "outside.json"
    outside.write_bytes((small / "config.json").read_bytes())
    (small / "config.json").unlink()
    (small / "config.json").symlink_to(outside)
    with pytest.raises(ArtifactTamperedError, match="a link out of"):
        open_artifact(small)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_schema_is_refused_by_its_number(version: Any, small: Path) -> None:
    edit_manifest(small, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(ArtifactError, match=f"schema version {version!r}; this code reads version 1"):
        open_artifact(small)


@pytest.mark.parametrize("content", ["", "[]", "not json", '{"schema_version": 1}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(content: str, small: Path) -> None:
    (small / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError):
        open_artifact(small)


def test_an_unknown_key_is_refused_by_its_name(small: Path) -> None:
    edit_manifest(small, lambda manifest: manifest.update(run_this="rm -rf /"))
    with pytest.raises(ArtifactError, match="run_this"):
        open_artifact(small)


def test_a_variant_can_name_only_known_blobs(tmp_path: Path) -> None:
    opened = write(tmp_path / "small")
    variant = opened.variant("int8").model_copy(update={"tensors": {"a.weight": "blobs/other.safetensors"}})
    with pytest.raises(ArtifactError, match="not in the manifest"):
        opened.tensors(variant)
    (blob,) = set(opened.variant("int8").tensors.values())
    with pytest.raises(ArtifactError, match="does not hold b"):
        opened.tensors(opened.variant("int8").model_copy(update={"tensors": {"b": blob}}))


def test_a_variant_that_does_not_fit_the_configuration_is_refused(minilm: Path, tmp_path: Path) -> None:
    files = {name: (minilm / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    write(tmp_path / "unfit", files=files)

    with pytest.raises((ArtifactError, ModelLoadError), match="no weights for embeddings"):
        EncoderEngine(tmp_path / "unfit")
