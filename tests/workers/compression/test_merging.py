"""One artifact with several forms of a model: what they share is stored once, and each node takes its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Artifact, Requires, Source, Structure, VariantContent, write_artifact
from headrace_workers.compression.merging import merge_artifacts

SHARED = {"embeddings": torch.arange(4096, dtype=torch.float32), "norm": torch.ones(8)}
SPARSE = torch.zeros(64, 64).index_fill_(1, torch.tensor([3]), 1.5)


def artifact(
    path: Path, name: str, tensors: dict[str, Tensor], *, config: bytes = b"{}", source: str = "0"
) -> Artifact:
    return write_artifact(
        path,
        task="embedding",
        source=Source(name="tiny", sha256=source * 64),
        files={"config.json": config, "reports/eval.json": name.encode()},
        variants={
            name: VariantContent(
                SHARED | tensors,
                {"layer": "affine4"},
                structure=Structure(pruned=["layer"]),
                requires=Requires(any_isa=["avx2"]),
                bits={"codes": 4} if "codes" in tensors else {},
            )
        },
        lineage=["quantize"],
        metrics={"size_ratio": 0.5},
    )


def test_variants_share_what_is_the_same(tmp_path: Path) -> None:
    codes = torch.randint(0, 16, (16, 33), dtype=torch.uint8)
    one = artifact(tmp_path / "one", "int4", {"codes": codes})
    two = artifact(tmp_path / "two", "sparse", {"weight": SPARSE})
    merged = merge_artifacts([one.path, two.path], tmp_path / "both")

    assert merged.manifest.variants == ["int4", "sparse"]
    for before, name in ((one, "int4"), (two, "sparse")):
        variant, old = merged.variant(name), before.variant(name)
        assert (variant.layers, variant.structure, variant.requires) == (old.layers, old.structure, old.requires)
        tensors, expected = merged.tensors(variant), before.tensors(old)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert _blob_bytes(merged) < _blob_bytes(one) + _blob_bytes(two) - SHARED["embeddings"].numel() * 4
    places = [merged.variant(name).tensors["embeddings"] for name in merged.manifest.variants]
    assert places[0] == places[1]


def test_what_was_said_of_each_is_kept(tmp_path: Path) -> None:
    parts = [artifact(tmp_path / name, name, {}).path for name in ("int8", "fp16")]
    merged = merge_artifacts(parts, tmp_path / "both")

    assert (merged.path / "reports/fp16/eval.json").read_bytes() == b"fp16"
    assert merged.manifest.metrics == {"int8.size_ratio": 0.5, "fp16.size_ratio": 0.5}
    assert merged.manifest.lineage == ["int8: quantize", "fp16: quantize"]


def test_alike_by_name_and_not_by_content_stays_apart(tmp_path: Path) -> None:
    parts = [
        artifact(tmp_path / name, name, {"weight": torch.full((4, 4), n)}).path for n, name in ((1.0, "a"), (2.0, "b"))
    ]
    merged = merge_artifacts(parts, tmp_path / "both")
    assert [float(merged.tensors(merged.variant(name))["weight"][0, 0]) for name in ("a", "b")] == [1.0, 2.0]


def test_only_forms_of_one_model_are_merged(tmp_path: Path) -> None:
    one = artifact(tmp_path / "one", "int8", {}).path
    with pytest.raises(ArtifactError, match="another model"):
        merge_artifacts([one, artifact(tmp_path / "other", "fp16", {}, source="1").path], tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"another config\.json"):
        merge_artifacts([one, artifact(tmp_path / "wide", "fp16", {}, config=b"[]").path], tmp_path / "x")
    with pytest.raises(ArtifactError, match="has a variant 'int8'"):
        merge_artifacts([one, artifact(tmp_path / "again", "int8", {}).path], tmp_path / "x")
    with pytest.raises(ArtifactError, match="two artifacts or more"):
        merge_artifacts([one], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _blob_bytes(artifact: Artifact) -> int:
    return sum(entry.bytes for name, entry in artifact.manifest.files.items() if name.startswith("blobs/"))
