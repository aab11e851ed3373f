"""The pipeline: from a model to an artifact and its report, or to a reason why not."""

from __future__ import annotations

import errno
import fcntl
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headrace.errors import (
    ArtifactError,
    CompressionDataError,
    CompressionError,
    GateError,
    ModelLoadError,
    RecipeError,
    StageError,
)
from headrace_workers.artifacts.artifact import open_artifact
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.pipeline import Measures, Step, compress, compress_subject
from headrace_workers.compression.recipe import Recipe, parse_recipe
from headrace_workers.compression.report import CompressionReport
from headrace_workers.compression.subject import ModuleSubject, load_subject
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.source import find_source
from support.counting_stages import INT8, QUICK, TWO, Stages

Run = Callable[..., CompressionReport]
TinyModel = Callable[..., Path]

# -- what it is for -----------------------------------------------------------------------------------------


def test_a_model_becomes_an_artifact_with_its_report(pipeline_model: Path, tmp_path: Path) -> None:
    """Without data: sentences of Python's documentation judge, and the report says so."""
    report = compress(pipeline_model, "int8", None, tmp_path / "out", measures=QUICK)

    opened = open_artifact(tmp_path / "out")
    assert opened.manifest.lineage == ["quantize: int8"]
    assert opened.manifest.metrics == report.metrics
    assert 0.2 < report.metrics["size_ratio"] < 0.6
    assert report.metrics["batch_invariant"] == 1
    assert report.metrics["cosine_mean"] > 0.9
    assert "Python's own documentation" in report.data
    assert "reports/eval.json" in opened.manifest.files
    assert CompressionReport.model_validate_json((tmp_path / "out/reports/eval.json").read_bytes()) == report
    assert Recipe.model_validate_json((tmp_path / "out/recipe.json").read_bytes()) == report.recipe
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert EncoderEngine(tmp_path / "out").info.variant == "int8"


def test_every_stage_says_what_it_brought(run_pipeline: Run, stages: Stages) -> None:
    steps: list[Step] = []
    report = run_pipeline(TWO, measures=Measures(examples=16, rounds=1, round_tokens=64), progress=steps.append)

    assert stages.ran == ["prune", "quantize"]
    pruned, quantized = report.stages
    assert pruned.notes == ["prune set small weights to zero"]
    assert pruned.measured.weights_bytes < report.original.weights_bytes
    assert pruned.measured.resident_bytes == report.original.resident_bytes
    assert "no gain in memory" in pruned.gained
    assert "similarity 1 → " in pruned.gained
    assert quantized.measured.resident_bytes < 0.5 * pruned.measured.resident_bytes
    assert "memory ×0." in quantized.gained
    assert {(step.stage, step.kind) for step in steps} == {(0, "prune"), (1, "quantize")}
    assert [step.what for step in steps][:2] == ["starting", "working"]


def test_any_torch_module_is_compressed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = ModuleSubject(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)))
    examples = Examples(list(torch.randn(200, 16)), torch.randint(4, (200,)).tolist())

    report = compress_subject(subject, split(examples), parse_recipe(INT8), tmp_path / "out", measures=QUICK)

    assert open_artifact(tmp_path / "out").manifest.task == "custom"
    assert report.stages[0].measured.quality is not None
    assert report.stages[0].measured.quality.metric_name == "accuracy"
    assert report.metrics["size_ratio"] < 0.5
    assert report.source == "Sequential"


def test_a_language_model(tiny_model: TinyModel, pipeline_data: Split, tmp_path: Path) -> None:
    """Timed by forward passes, judged by perplexity."""
    model = tiny_model("Llama", "ForCausalLM", num_key_value_heads=1, tie_word_embeddings=True)
    subject = load_subject(find_source(model), "causal_lm")

    report = compress_subject(subject, pipeline_data, parse_recipe(INT8), tmp_path / "out", model=model, measures=QUICK)

    assert 0.8 < report.metrics["perplexity_ratio"] < 1.25
    assert report.metrics["size_ratio"] < 0.5
    assert report.metrics["speedup"] > 0
    assert report.metrics["batch_distance"] < 0.1


def test_half_precision_for_gpus(pipeline_model: Path, tmp_path: Path) -> None:
    report = compress(pipeline_model, "gpu", None, tmp_path / "out", measures=QUICK)

    assert open_artifact(tmp_path / "out").manifest.variants == ["fp16"]
    assert report.metrics["size_ratio"] < 0.55
    assert report.metrics["cosine_mean"] > 0.9999


def test_a_model_that_was_never_on_disk(pipeline_model: Path, run_pipeline: Run) -> None:
    """One that was just trained has no files that an engine could load for comparison."""
    report = run_pipeline(INT8, model=None, keep_work=True)

    assert report.metrics["speedup"] > 0
    assert report.original.weights_bytes == pytest.approx(
        (pipeline_model / "model.safetensors").stat().st_size, rel=0.2
    )


# -- gates --------------------------------------------------------------------------------------------------


def test_a_result_that_fails_a_gate_is_kept_but_no_artifact(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"max_size_ratio: size_ratio is 0\.\d+, above 0\.01; .* It lies in .*rejected"):
        run_pipeline(INT8 | {"gates": {"max_size_ratio": 0.01}})

    assert not (tmp_path / "out").exists()
    rejected = open_artifact(tmp_path / ".out.work/rejected")
    report = json.loads((rejected.path / "reports/eval.json").read_bytes())
    assert report["failures"][0].startswith("max_size_ratio")
    assert rejected.manifest.metrics["size_ratio"] > 0.01
    # With a gate that can be met nothing is done again, and nothing is left over.
    run_pipeline(INT8 | {"gates": {"max_size_ratio": 0.9}})
    assert stages.ran == ["quantize"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_gate_that_cannot_be_met_is_refused_before_any_work(run_pipeline: Run, stages: Stages) -> None:
    with pytest.raises(RecipeError, match="max_perplexity_ratio cannot be met"):
        run_pipeline(INT8 | {"gates": {"max_perplexity_ratio": 1.1}})

    assert stages.ran == []


# -- bad input ----------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk with room for little: writing more than this to a file fails in the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_that_looks_whole(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    with files_of_at_most(200_000), pytest.raises(CompressionError, match="no room left to write") as full:
        run_pipeline(TWO)

    assert isinstance(full.value.__cause__, OSError)
    assert full.value.__cause__.errno == errno.EFBIG
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / ".out.work").iterdir()] == [".lock"]
    run_pipeline(TWO)
    assert open_artifact(tmp_path / "out").manifest.variants == ["int8"]


def test_a_stage_that_does_not_suit_the_model_keeps_what_was_finished(run_pipeline: Run, stages: Stages) -> None:
    stages.fails["quantize"] = StageError("the model has no linear layer")
    with pytest.raises(StageError, match="no linear layer"):
        run_pipeline(TWO)
    stages.ran.clear()

    run_pipeline(TWO)

    assert stages.ran == ["quantize"]


def test_nan_weights_are_named(pipeline_model: Path, pipeline_data: Split, tmp_path: Path) -> None:
    subject = load_subject(find_source(pipeline_model))
    subject.module.get_parameter("encoder.layer.0.output.dense.weight").data[0, 0] = float("nan")

    with pytest.raises(StageError, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        compress_subject(subject, pipeline_data, parse_recipe(INT8), tmp_path / "out", measures=QUICK)

    assert not (tmp_path / "out").exists()


def test_an_artifact_never_changes(run_pipeline: Run, stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with pytest.raises(ArtifactError, match="write it to another place"):
        run_pipeline(INT8)

    assert stages.ran == []


def test_two_at_once_in_one_place(run_pipeline: Run, tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    with (tmp_path / ".out.work/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CompressionError, match="another compression is at work"):
            run_pipeline(INT8)


def test_an_artifact_is_not_compressed_again(run_pipeline: Run, tmp_path: Path) -> None:
    run_pipeline(INT8)

    with pytest.raises(ModelLoadError, match="is an artifact already"):
        compress(tmp_path / "out", "int8", None, tmp_path / "again")


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "prune_structured", "target": "ffn", "ratio": 0.5},
        {"kind": "distill"},
        {"kind": "prune", "method": "wanda", "amount": 0.5},
        {"kind": "quantize", "method": "gptq"},
        {"kind": "quantize", "smooth": 0.5},
        {"kind": "quantize", "overrides": {"*": {"activations": {"kind": "static"}}}},
    ],
)
def test_what_learns_from_data_needs_some(pipeline_model: Path, tmp_path: Path, stage: dict[str, Any]) -> None:
    with pytest.raises(CompressionDataError, match=f"{stage['kind']} learns from data; .* --data"):
        compress(pipeline_model, parse_recipe({"stages": [stage]}), None, tmp_path / "out")


def test_the_original_is_not_changed(pipeline_model: Path, pipeline_data: Split, tmp_path: Path) -> None:
    subject = load_subject(find_source(pipeline_model))
    before = {name: tensor.clone() for name, tensor in subject.module.state_dict().items()}
    recipe, output = parse_recipe(INT8), tmp_path / "out"

    compress_subject(subject, pipeline_data, recipe, output, model=pipeline_model, measures=QUICK)

    after = subject.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
