"""Quantization: how near int8 weights are, what is quantized and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace_workers.compression.quantization.quantize import quantize_model, round_to_nearest
from headrace_workers.kernels.layers import CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 20), columns=st.integers(1, 40), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
def test_every_weight_is_within_half_a_step(rows: int, columns: int, size: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * size

    values, scale = round_to_nearest(weight)

    assert values.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert int(values.min()) >= -127
    assert bool(((values * scale[:, None] - weight).abs() <= scale[:, None] * 0.50001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    values, scale = round_to_nearest(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))

    assert values.tolist() == [[0, 0], [64, -127]]
    assert scale.tolist() == pytest.approx([1.0, 2 / 127])


def test_heads_and_small_tables_are_left_alone(tiny_model: Callable[..., Path]) -> None:
    model = load_model(find_source(tiny_model("Bert", "ForSequenceClassification")), "sequence_classification").module

    report = quantize_model(model)

    assert report.schemes["bert.embeddings.word_embeddings"] == "int8_row"
    assert report.schemes["bert.encoder.layer.0.intermediate.dense"] == "int8_channel"
    assert isinstance(model.get_submodule("bert.embeddings.word_embeddings"), QuantizedEmbedding)
    assert isinstance(model.get_submodule("bert.encoder.layer.1.attention.self.query"), CompressedLinear)
    assert set(report.skipped) == {
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
        "bert.pooler.dense",
        "classifier",
    }
    assert type(model.get_submodule("classifier")) is nn.Linear


def test_what_is_left_alone_can_be_chosen() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    report = quantize_model(model, left_alone=["1"])

    assert (list(report.schemes), report.skipped) == (["0"], ["1"])


def test_sizes_are_reported(minilm: Path) -> None:
    report = quantize_model(load_model(find_source(minilm), "embedding").module)

    assert 0.25 < report.bytes_after / report.bytes_before < 0.27
    assert report.describe()["layers"] == 37


def test_a_quantized_layer_answers_like_the_plain_one() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(96, 40, bias=False)
    model = nn.Sequential(nn.Linear(96, 40, bias=False))
    model[0].load_state_dict(plain.state_dict())
    quantize_model(model)
    layer = model[0]
    assert isinstance(layer, CompressedLinear)
    layer.prepare(KernelTable("int8"))
    x = torch.randn(50, 96)

    with torch.inference_mode():
        assert (model(x) - plain(x)).norm() / plain(x).norm() < 0.012
