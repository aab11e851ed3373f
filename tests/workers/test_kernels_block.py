"""Whole blocks in one call: only where they are what they seem, and never with other answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.kernels.attention import Packing, packed
from headrace_workers.kernels.block import FusedBlock, activation_of, fuse_blocks
from headrace_workers.kernels.layers import CompressedLinear
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.kernels.weights import Activation, InputRange, Int8Weight
from headrace_workers.models.loading import LoadedModel, load_model
from headrace_workers.models.runner import PackedRunner
from headrace_workers.models.source import find_source

native = pytest.mark.skipif(not support().isas, reason=support().reason)
LENGTHS = [3, 40, 1, 17]


def prepared(folder: Path) -> tuple[LoadedModel, KernelTable]:
    """A quantized model with packed attention, its layers ready to run one by one."""
    model = load_model(find_source(folder), "embedding")
    return model, made_ready(model)


def made_ready(model: LoadedModel) -> KernelTable:
    """Quantize a model and bind its layers; returns the table they chose their kernels from."""
    table = KernelTable("int8")
    quantize_model(model.module)
    PackedRunner(model)
    for module in model.module.modules():
        if isinstance(module, CompressedLinear):
            module.prepare(table)
    return table


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


def slice_block(block: Any, *, heads: int, wide: int) -> None:
    """Leave a BERT block its first heads and feed-forward neurons, as structured pruning does."""
    attention = block.attention.self
    inner = heads * attention.attention_head_size
    for layer in (attention.query, attention.key, attention.value):
        layer.weight, layer.bias = nn.Parameter(layer.weight[:inner]), nn.Parameter(layer.bias[:inner])
        layer.out_features = inner
    out, up, down = block.attention.output.dense, block.intermediate.dense, block.output.dense
    out.weight, out.in_features = nn.Parameter(out.weight[:, :inner]), inner
    up.weight, up.bias, up.out_features = nn.Parameter(up.weight[:wide]), nn.Parameter(up.bias[:wide]), wide
    down.weight, down.in_features = nn.Parameter(down.weight[:, :wide]), wide
    attention.num_attention_heads = heads


@pytest.fixture
def uneven(tiny_model: Callable[..., Path]) -> tuple[LoadedModel, KernelTable]:
    """Three blocks of a model, each with heads and a feed-forward of its own: none as the configuration has it."""
    folder = tiny_model("Bert", num_hidden_layers=3, hidden_size=128, num_attention_heads=8, intermediate_size=300)
    model = load_model(find_source(folder), "embedding")
    blocks = model.module.get_submodule("encoder.layer").children()
    with torch.no_grad():
        for block, heads, wide in zip(blocks, (3, 8, 1), (48, 208, 16), strict=True):
            slice_block(block, heads=heads, wide=wide)
    return model, made_ready(model)


@native
def test_blocks_of_different_widths_are_fused_each_as_it_is(uneven: tuple[LoadedModel, KernelTable]) -> None:
    model, table = uneven
    layer_by_layer = hidden(model)

    assert fuse_blocks(model.module, table)["fused_blocks"] == 3

    blocks = [module for module in model.module.modules() if isinstance(module, FusedBlock)]
    assert [block.sizes for block in blocks] == [(128, 3, 16, 48), (128, 8, 16, 208), (128, 1, 16, 16)]
    distance = (hidden(model) - layer_by_layer).norm() / layer_by_layer.norm()
    assert 0 < distance < 1e-2


@native
def test_in_uneven_blocks_a_sequence_is_the_same_alone_and_in_any_batch(
    uneven: tuple[LoadedModel, KernelTable], isa: Isa
) -> None:
    model, table = uneven
    fuse_blocks(model.module, table)
    first = model.module.get_submodule("encoder.layer.0")
    random = torch.Generator().manual_seed(2)
    texts = [torch.randn(length, 128, generator=random) for length in (1, 5, 16, 17, 33, 70)]
    alone = []
    with torch.inference_mode():
        for text in texts:
            with packed(Packing([len(text)])):
                alone.append(first(text[None])[0])
        for _ in range(5):
            order = torch.randperm(len(texts), generator=random).tolist()
            with packed(Packing([len(texts[at]) for at in order])):
                together = first(torch.cat([texts[at] for at in order])[None])[0]
            assert torch.equal(together, torch.cat([alone[at] for at in order]))


@native
def test_a_block_whose_sizes_do_not_fit_is_left_alone(tiny_model: Callable[..., Path]) -> None:
    """Native code trusts the sizes that it is given, so they are looked at before."""
    model, table = prepared(tiny_model("Bert"))
    first = model.module.get_submodule("encoder.layer.0")
    wider = CompressedLinear(Int8Weight(torch.zeros(64, 144, dtype=torch.int8), torch.ones(64), None))
    wider.prepare(table)
    first.set_submodule("output.dense", wider)

    assert fuse_blocks(model.module, table)["fused_blocks"] == 1
    assert not isinstance(model.module.get_submodule("encoder.layer.0"), FusedBlock)


def calibrate(layer: CompressedLinear, table: KernelTable, step: float) -> None:
    """Give a layer a range of 256 steps around zero."""
    source, found = layer.source, InputRange(torch.tensor([step]), torch.tensor([128], dtype=torch.int32))
    assert source is not None
    layer.source = Int8Weight(source.values, source.scale, source.bias, input_range=found)
    layer.prepare(table)


@native
def test_static_blocks_are_fused_if_their_projections_share_a_range(tiny_model: Callable[..., Path]) -> None:
    model, table = prepared(tiny_model("Bert"))
    layers = [module for module in model.module.modules() if isinstance(module, CompressedLinear)]
    for layer in layers:
        calibrate(layer, table, 0.05)
    calibrate(layers[0], table, 0.06)
    layer_by_layer = hidden(model)

    assert fuse_blocks(model.module, table)["fused_blocks"] == 1

    assert (hidden(model) - layer_by_layer).norm() / layer_by_layer.norm() < 1e-2


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
