"""Whole blocks in one call: only where they are what they seem, and never with other answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace_workers.compression.quantize import quantize_model
from headrace_workers.kernels.attention import Packing, packed
from headrace_workers.kernels.block import FusedBlock, activation_of, fuse_blocks
from headrace_workers.kernels.layers import CompressedLinear
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.kernels.weights import Activation
from headrace_workers.models.loading import LoadedModel, load_model
from headrace_workers.models.runner import PackedRunner
from headrace_workers.models.source import find_source

native = pytest.mark.skipif(not support().isas, reason=support().reason)
LENGTHS = [3, 40, 1, 17]


def prepared(folder: Path) -> tuple[LoadedModel, KernelTable]:
    """A quantized model with packed attention, its layers ready to run one by one."""
    model, table = load_model(find_source(folder), "embedding"), KernelTable("int8")
    quantize_model(model.module)
    PackedRunner(model)
    for module in model.module.modules():
        if isinstance(module, CompressedLinear):
            module.prepare(table)
    return model, table


def hidden(model: LoadedModel) -> Tensor:
    ids = torch.arange(sum(LENGTHS)) % 90 + 4
    positions = torch.cat([torch.arange(length) for length in LENGTHS]) + model.first_position
    with torch.inference_mode(), packed(Packing(LENGTHS)):
        answer: Tensor = model.module(input_ids=ids[None], position_ids=positions[None])[0]
    return answer


@native
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        ("Bert", {}),
        ("Bert", {"hidden_act": "gelu_new", "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 200}),
        ("Bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
        ("Bert", {"hidden_act": "silu"}),
        ("Roberta", {}),
        ("Electra", {"embedding_size": 32}),
        ("DistilBert", {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}),
    ],
    ids=str,
)
def test_a_fused_model_answers_like_the_model(
    make: str, settings: dict[str, Any], tiny_model: Callable[..., Path], isa: Isa
) -> None:
    model, table = prepared(tiny_model(make, **settings))
    layer_by_layer = hidden(model)

    report = fuse_blocks(model.module, table)

    assert report["fused_blocks"] == (0 if isa is Isa.NONE else 2), report
    if isa is not Isa.NONE:
        distance = (hidden(model) - layer_by_layer).norm() / layer_by_layer.norm()
        assert 0 < distance < 1e-2


@native
def test_all_instruction_sets_give_the_same_bits(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for isa in support().isas:
        monkeypatch.setenv("HEADRACE_ISA", isa)
        model, table = prepared(minilm)
        assert fuse_blocks(model.module, table)["fused_blocks"] == 6
        answers.append(hidden(model))

    assert all(torch.equal(answer, answers[0]) for answer in answers)


@native
def test_two_threads_give_the_bits_of_one(minilm: Path, threads: Callable[[int], None]) -> None:
    model, table = prepared(minilm)
    fuse_blocks(model.module, table)
    one = hidden(model)

    threads(2)

    assert torch.equal(hidden(model), one)


@native
def test_a_poisoned_text_disturbs_no_other(minilm: Path) -> None:
    model, table = prepared(minilm)
    fuse_blocks(model.module, table)
    block = next(module for module in model.module.modules() if isinstance(module, FusedBlock))
    x = torch.randn(1, 30, 384, generator=torch.Generator().manual_seed(0))
    with packed(Packing([10, 10, 10])):
        clean = block(x)
        x[0, 13, 5] = torch.nan
        answer = block(x)

    assert answer[0, 10:20].isnan().all()
    assert torch.equal(answer[0, :10], clean[0, :10])
    assert torch.equal(answer[0, 20:], clean[0, 20:])


@native
def test_a_block_that_only_looks_like_one_is_left_alone(tiny_model: Callable[..., Path]) -> None:
    """Same names, other arithmetic: the check at load sees it, and the model keeps its own code."""
    model, table = prepared(tiny_model("Bert"))
    first = model.module.get_submodule("encoder.layer.0")
    own = type(first)

    class PreNorm(own):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states + super().forward(hidden_states, *args, **kwargs)

    for layer in model.module.get_submodule("encoder.layer").children():
        layer.__class__ = PreNorm
    expected = hidden(model)

    report = fuse_blocks(model.module, table)

    assert report["fused_blocks"] == 0
    assert "not what their names say" in report["reason"]
    assert torch.equal(hidden(model), expected)


@native
def test_a_block_with_a_layer_in_fp32_is_left_alone(tiny_model: Callable[..., Path]) -> None:
    model, _ = prepared(tiny_model("Bert"))
    table = KernelTable("fp32")

    report = fuse_blocks(model.module, table)

    assert report["fused_blocks"] == 0
    assert "does not run on a native kernel" in report["reason"]


def test_other_makes_run_layer_by_layer(tiny_model: Callable[..., Path]) -> None:
    model, table = prepared(tiny_model("ModernBert", intermediate_size=96, global_attn_every_n_layers=2))

    assert fuse_blocks(model.module, table)["fused_blocks"] == 0


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (nn.GELU(), Activation.GELU),
        (nn.GELU("tanh"), Activation.GELU_TANH),
        (nn.ReLU(), Activation.RELU),
        (nn.SiLU(), Activation.SILU),
        (nn.Identity(), Activation.IDENTITY),
        (nn.ELU(), None),
        (nn.Linear(3, 3), None),
        (lambda _x: "not a tensor", None),
    ],
)
def test_activations_are_told_by_what_they_do(function: Any, activation: Activation | None) -> None:
    assert activation_of(copy.deepcopy(function)) is activation
