"""The same engine on a GPU: what it answers is what the CPU answers, to the precision it computes in.

The others of these run wherever a GPU is; the last one runs where none is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.errors import ModelLoadError
from headrace_workers import Prepared
from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.fetching import _REDUCTIONS
from headrace_workers.models.loading import load_model
from headrace_workers.models.pooling import Pooling
from headrace_workers.models.source import find_source

TinyModel = Callable[..., Path]
MAKES: list[tuple[str, dict[str, Any]]] = [
    ("Bert", {}),
    ("Roberta", {}),
    ("ModernBert", {"intermediate_size": 96, "global_attn_every_n_layers": 2, "local_attention": 24}),
]
FAR: dict[Any, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 3e-2, "bf16": 5e-2}
"""How far an answer may be from the one in fp32 on the CPU, relative to its length."""

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def vectors(engine: EncoderEngine, texts: list[str]) -> np.ndarray[Any, Any]:
    items = [item for item in engine.prepare([(text, {}) for text in texts]) if isinstance(item, Prepared)]
    return np.stack([answer.numpy() for answer in engine.run(items)])


@on_gpu
@pytest.mark.parametrize("precision", FAR)
@pytest.mark.parametrize(("make", "settings"), MAKES, ids=[name for name, _ in MAKES])
def test_it_embeds_as_the_cpu_does(
    make: str, settings: dict[str, Any], precision: Any, tiny_model: TinyModel, tiny_texts: list[str]
) -> None:
    """Packed, in one pass and in many."""
    folder = tiny_model(make, **settings)
    expected = vectors(EncoderEngine(folder, precision="fp32"), tiny_texts)
    for tokens in (None, 50):
        engine = EncoderEngine(folder, precision=precision, device="cuda", max_tokens_per_pass=tokens)
        off = np.linalg.norm(vectors(engine, tiny_texts) - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert off.max() < FAR[precision]
        assert (engine.info.device, engine.info.details["packed"]) == ("cuda", True)


@on_gpu
@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
def test_it_classifies_as_the_cpu_does(task: Any, tiny_model: TinyModel, tiny_texts: list[str]) -> None:
    head = {"sequence_classification": "ForSequenceClassification", "token_classification": "ForTokenClassification"}
    folder = tiny_model("Bert", head[task], num_labels=3)
    cpu = EncoderEngine(folder, task=task, precision="fp32")
    gpu = EncoderEngine(folder, task=task, precision="fp32", device="cuda")
    items = [item for item in cpu.prepare([(text, {}) for text in tiny_texts]) if isinstance(item, Prepared)]
    for here, there in zip(cpu.run(items), gpu.run(items), strict=True):
        assert [one["label"] for one in here] == [one["label"] for one in there]


def test_an_expanded_model_is_what_int8_stands_for(tiny_model: TinyModel) -> None:
    """Every weight within half a step of what it was, and no compressed layer is left."""
    source = find_source(tiny_model("Bert"))
    plain, expanded = (load_model(source, "embedding") for _ in range(2))
    report = quantize_model(expanded.module)
    expand_model(expanded.module)
    assert not expanded.compressed
    were = dict(plain.module.named_parameters())
    for name, values in expanded.module.named_parameters():
        step = were[name].abs().amax(-1, keepdim=True) / 127
        assert bool(((values - were[name]).abs() <= step / 2 + 1e-6).all()), name
    assert report.schemes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said_at_load(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelLoadError, match="sees no GPU"):
        EncoderEngine(tiny_model("Bert"), device="cuda")
    with pytest.raises(ModelLoadError, match="fp16 is for GPUs"):
        EncoderEngine(tiny_model("Bert"), precision="fp16")


@pytest.mark.parametrize("mode", sorted(_REDUCTIONS))
def test_what_a_gpu_pools_is_what_the_cpu_pools(mode: str) -> None:
    """And pooling it once more changes nothing."""
    counts = [1, 7, 3]
    rows = torch.randn(sum(counts), 8, generator=torch.Generator().manual_seed(1))
    pooling, starts = Pooling(modes=(mode,)), np.cumsum([0, *counts]).astype(np.int32)
    expected = pooling(rows.numpy(), starts, normalize=[True] * 3)
    reduced = _REDUCTIONS[mode](rows, counts).numpy()
    again = pooling(reduced, np.arange(4, dtype=np.int32), normalize=[True] * 3)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)
