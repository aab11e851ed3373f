"""Exported models answer as the artifact's weights say, in runtimes that know nothing of us, and stay small."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from headrace.errors import CompressionError
from headrace_workers.artifacts.artifact import Artifact, Source
from headrace_workers.compression.checkpoint import files_of, write_subject
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.edge.export import export_artifact
from headrace_workers.compression.pruning.structured import prune_structured
from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.compression.quantization.quantize import quantize
from headrace_workers.compression.recipe import (
    ActivationScheme,
    Calibration,
    PruneStructured,
    Quantize,
    WeightScheme,
)
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Batch, Subject, TextSubject
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source

Made = Callable[..., Artifact]
TinySubject = Callable[..., TextSubject]
ContextOf = Callable[[Subject], StageContext]

_INT8 = Quantize()
_INT4 = Quantize(weights=WeightScheme(bits=4, group=32, symmetric=False, activations=ActivationScheme(kind="none")))
_SHAPE = {"num_hidden_layers": 1}


@pytest.fixture
def made(tmp_path: Path, context_of: ContextOf) -> Made:
    """Writes an artifact of a subject: `made(subject, PruneStructured(…), Quantize(…))`."""

    def make(subject: TextSubject, *stages: Quantize | PruneStructured) -> Artifact:
        context = context_of(subject.clone())
        for stage in stages:
            run: Any = quantize if isinstance(stage, Quantize) else prune_structured
            run(subject, stage, context)
        return write_subject(
            tmp_path / "artifact",
            subject,
            contents_of(subject),
            files=files_of(subject, subject),
            source=Source(name="tiny", sha256="0" * 64),
        )

    return make


def _expected(artifact: Artifact, texts: list[str]) -> tuple[Batch, Tensor]:
    """A batch, and what the artifact's weights answer in floating point."""
    source, variant = find_source(artifact.path), artifact.manifest.variants[0]
    subject = TextSubject(load_model(source, artifact.manifest.task, variant=variant), source)
    expand_model(subject.module)
    batch = subject.batch(texts)
    with torch.inference_mode():
        if subject.task == "embedding":
            return batch, subject.answers(batch).rows
        return batch, subject.module(**batch.inputs).logits


def _onnx_answer(path: Path, batch: Batch, *, exact: bool = True) -> Tensor:
    """What onnxruntime says; not `exact`, as it does by default: inputs of quantized products rounded to 8 bits."""
    options = onnxruntime.SessionOptions()
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.inputs.items()})
    return torch.from_numpy(answer)


def _matrices(path: Path) -> list[Any]:
    return [part for part in onnx.load(path).graph.initializer if len(part.dims) > 1]


def _cosines(answer: Tensor, expected: Tensor) -> Tensor:
    return torch.cosine_similarity(answer.flatten(1), expected.flatten(1), dim=1)


def test_an_onnx_file_answers_like_the_artifact(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    artifact = made(tiny_subject("Bert", **_SHAPE), _INT8)
    path = export_artifact(artifact.path, "onnx", tmp_path / "model.onnx")
    for texts in (tiny_texts, tiny_texts[:1]):  # batches and lengths other than the one it was traced with
        batch, expected = _expected(artifact, texts)
        assert torch.allclose(_onnx_answer(path, batch), expected, atol=1e-5)
        assert float(_cosines(_onnx_answer(path, batch, exact=False), expected).min()) > 0.999


def test_a_pruned_model_keeps_its_widths_and_its_int8(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    shape = {"hidden_size": 320, "intermediate_size": 2048, "num_attention_heads": 4}
    narrower = (PruneStructured(target="ffn", ratio=0.5), PruneStructured(target="heads", ratio=0.5))
    artifact = made(tiny_subject("Bert", **_SHAPE, **shape), *narrower, _INT8)
    path = export_artifact(artifact, "onnx", tmp_path / "model.onnx")
    batch, expected = _expected(artifact, tiny_texts)
    assert torch.allclose(_onnx_answer(path, batch), expected, atol=1e-5)
    large = [part for part in _matrices(path) if np.prod(part.dims) > 320 * 130]
    assert {part.data_type for part in large} == {onnx.TensorProto.INT8}
    assert [320, 1024] in [list(part.dims) for part in large]
    fp32_bytes = 4 * sum(int(np.prod(part.dims)) for part in _matrices(path))
    assert path.stat().st_size < 0.35 * fp32_bytes


def test_weights_of_four_bits_take_four_bits(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    artifact = made(tiny_subject("Roberta", "ForSequenceClassification", num_labels=3, **_SHAPE), _INT4)
    path = export_artifact(artifact, "onnx", tmp_path / "model.onnx")
    batch, expected = _expected(artifact, tiny_texts)
    assert torch.allclose(_onnx_answer(path, batch), expected, atol=1e-5)
    assert onnx.TensorProto.UINT4 in {part.data_type for part in _matrices(path)}


def test_calibrated_ranges_round_inputs_in_the_file_too(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    static = WeightScheme(activations=ActivationScheme(kind="static", observer="minmax"))
    artifact = made(tiny_subject("Bert", **_SHAPE), Quantize(weights=static, calibration=Calibration(samples=8)))
    path = export_artifact(artifact, "onnx", tmp_path / "model.onnx")
    rounded = [node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounded) == 6
    batch, expected = _expected(artifact, tiny_texts)
    answer = _onnx_answer(path, batch)
    assert float(_cosines(answer, expected).min()) > 0.99
    assert not torch.allclose(answer, expected, atol=1e-5)


def test_a_language_model_with_tied_embeddings(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    settings = {"num_key_value_heads": 1, "tie_word_embeddings": True, **_SHAPE}
    artifact = made(tiny_subject("Llama", "ForCausalLM", **settings), _INT8)
    path = export_artifact(artifact, "onnx", tmp_path / "model.onnx")
    batch, expected = _expected(artifact, tiny_texts)
    answer = _onnx_answer(path, batch)
    assert torch.allclose(answer[batch.valid], expected[batch.valid], atol=1e-4)
    assert len([part for part in _matrices(path) if sorted(part.dims) == [64, 1200]]) == 1


def test_a_torch_program_answers_like_the_artifact(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    artifact = made(tiny_subject("Bert", **_SHAPE), _INT4)
    program = torch.export.load(export_artifact(artifact, "torch", tmp_path / "model.pt2"))
    assert {tensor.dtype for name, tensor in program.state_dict.items() if name.endswith("codes")} == {torch.uint8}
    for texts in (tiny_texts, tiny_texts[:1]):
        batch, expected = _expected(artifact, texts)
        with torch.inference_mode():
            assert torch.allclose(program.module()(**batch.inputs), expected, atol=1e-5)


@pytest.mark.skipif(find_spec("executorch") is not None, reason="executorch is installed")
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    made: Made, tiny_subject: TinySubject, tmp_path: Path
) -> None:
    artifact = made(tiny_subject("Bert", **_SHAPE), _INT8)
    with pytest.raises(CompressionError, match="pip install executorch"):
        export_artifact(artifact, "executorch", tmp_path / "model.pte")


@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
@pytest.mark.filterwarnings("ignore")  # its own, as it is imported
def test_an_executorch_program_answers_like_the_artifact(
    made: Made, tiny_subject: TinySubject, tiny_texts: list[str], tmp_path: Path
) -> None:
    from executorch.runtime import Runtime

    artifact = made(tiny_subject("Bert", **_SHAPE), _INT8)
    path = export_artifact(artifact, "executorch", tmp_path / "model.pte")
    forward = Runtime.get().load_program(path).load_method("forward")
    batch, expected = _expected(artifact, tiny_texts)
    (answer,) = forward.execute([batch.inputs["input_ids"], batch.inputs["attention_mask"]])
    assert float(_cosines(answer, expected).min()) > 0.999


def test_nothing_is_overwritten_and_nothing_half_written_is_left(
    made: Made, tiny_subject: TinySubject, tmp_path: Path
) -> None:
    artifact = made(tiny_subject("Bert", **_SHAPE), _INT8)
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(CompressionError, match="there already"):
        export_artifact(artifact, "onnx", target)
    assert [entry.name for entry in target.parent.iterdir()] == ["model.onnx"]
    assert target.read_bytes() == b"mine"


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="onnx, torch, executorch"):
        export_artifact(tmp_path, "tflite", tmp_path / "model")  # type: ignore[arg-type]
