"""Inputs quantized by a calibrated range: the same sums on every kernel, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace_workers.kernels.layers import CompressedLinear
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.linear import LinearKernel, NativeKernel, TorchInt8Kernel, quantize_inputs
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.kernels.selftest import exact_reference, failure
from headrace_workers.kernels.weights import Activation, InputRange, Int8Weight
from support.kernels import assert_poison_keeps_to_its_row

RANGE = InputRange(torch.tensor([6 / 255]), torch.tensor([100], dtype=torch.int32))
"""From -2.35 to 3.65."""


def kernels() -> list[LinearKernel[Int8Weight]]:
    return [*(NativeKernel(isa) for isa in support().isas), TorchInt8Kernel()]


def layer(
    inputs: int = 96,
    outputs: int = 80,
    *,
    found: InputRange | None = RANGE,
    bias: bool = True,
    activation: Activation = Activation.IDENTITY,
) -> Int8Weight:
    random = torch.Generator().manual_seed(inputs * 1000 + outputs)
    values = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    scale = torch.rand(outputs, generator=random) / 127
    given_bias = torch.randn(outputs, generator=random) if bias else None
    return Int8Weight(values, scale, given_bias, activation=activation, input_range=found)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain(x: Tensor, weight: Int8Weight) -> Tensor:
    y = x @ weight.dequantized().t()
    return y if weight.bias is None else y + weight.bias


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_within_the_range_it_is_close_to_the_plain_layer(kernel: LinearKernel[Int8Weight]) -> None:
    x, weight = randn(40, 384).clamp(-2.3, 3.6), layer(384, 96)
    expected = plain(x, weight)

    assert (kernel.prepare(weight)(x) - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_what_lies_outside_is_cut_off(kernel: LinearKernel[Int8Weight]) -> None:
    weight, ends = layer(), torch.tensor([[-100 * 6 / 255], [155 * 6 / 255]]).expand(2, 96).contiguous()
    run = kernel.prepare(weight)

    for far in (1e3, 1e9, 3e38):
        torch.testing.assert_close(run(ends.sign() * far), run(ends))
    torch.testing.assert_close(run(ends), plain(ends, weight), rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 70),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 150),
    zero=st.integers(0, 255),
    bias=st.booleans(),
)
def test_every_kernel_gives_the_exact_sums(rows: int, inputs: int, outputs: int, zero: int, bias: bool) -> None:
    found = InputRange(torch.tensor([0.013]), torch.tensor([zero], dtype=torch.int32))
    x, weight = randn(rows, inputs), layer(inputs, outputs, found=found, bias=bias)
    expected = exact_reference(x, weight)

    assert all(torch.equal(kernel.prepare(weight)(x), expected) for kernel in kernels())


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_activations_are_torchs(kernel: LinearKernel[Int8Weight], activation: Activation) -> None:
    x, weight = randn(9, 200), layer(200, 70, activation=activation)

    torch.testing.assert_close(kernel.prepare(weight)(x), exact_reference(x, weight), rtol=1e-5, atol=1e-5)


def test_a_row_has_the_same_bits_in_five_random_batches(isa: Isa) -> None:
    compressed = CompressedLinear(layer(activation=Activation.GELU))
    compressed.prepare(KernelTable("int8"))
    compressed.release()
    x, random = randn(300, 96), torch.Generator().manual_seed(0)
    alone = torch.cat([compressed(row[None]) for row in x])

    for size in (2, 9, 33, 129, 300):
        chosen = torch.randperm(300, generator=random)[:size]
        assert torch.equal(compressed(x[chosen]), alone[chosen])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_a_poisoned_row_answers_nan_and_disturbs_no_other(kernel: LinearKernel[Int8Weight], poison: float) -> None:
    assert_poison_keeps_to_its_row(kernel.prepare(layer(100, 40)), randn(35, 100), poison)


def test_a_quantized_input_is_within_half_a_step() -> None:
    x = randn(20, 77).clamp(-2.3, 3.6)

    values, scale = quantize_inputs(x, RANGE)

    assert (((values.float() - RANGE.int8_zero) * scale - x).abs() <= scale * 0.501).all()


def test_the_self_test_sees_a_kernel_that_forgets_the_range() -> None:
    class Forgetful(TorchInt8Kernel):
        def prepare(self, weight: Int8Weight) -> object:  # type: ignore[override]
            return super().prepare(Int8Weight(weight.values, weight.scale, weight.bias, activation=weight.activation))

    assert [failure(kernel) for kernel in kernels()] == [""] * len(kernels())
    assert "by a range" in failure(Forgetful())  # type: ignore[arg-type]


def test_static_and_dynamic_layers_of_one_size_are_chosen_apart() -> None:
    """They round otherwise, so they share neither a measurement nor a kernel's name for its numerics."""
    table = KernelTable("int8")
    static, dynamic = table.choose(layer()), table.choose(layer(found=None))

    assert [static.numerics, dynamic.numerics] == ["int8-static", "int8"]
    assert [str(shape) for shape in table.choices] == ["96x80 int8_static", "96x80"]


def test_layers_are_joined_only_if_they_share_their_range() -> None:
    other = InputRange(torch.tensor([0.5]), RANGE.zero_point)

    assert Int8Weight.joined([layer(), layer(outputs=64)]).input_range is RANGE
    for found in (other, None):
        with pytest.raises(ValueError, match="ranges of their own"):
            Int8Weight.joined([layer(), layer(found=found)])
        with pytest.raises(ValueError, match="ranges of their own"):
            Int8Weight.joined([layer(found=found), layer()])
