"""The int8 linear layer: exact sums, the same bits on every instruction set, and no row that disturbs another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.linear import Fp32Kernel, LinearKernel, NativeKernel, TorchInt8Kernel, quantize_rows
from headrace_workers.kernels.selftest import exact_reference, failure
from headrace_workers.kernels.weights import Activation, Int8Weight
from support.kernels import assert_poison_keeps_to_its_row

SHAPES = [
    (1, 1, 1),
    (1, 384, 384),
    (3, 63, 17),
    (5, 65, 64),
    (16, 64, 65),
    (17, 100, 16),
    (33, 384, 100),
    (130, 130, 48),
]


def kernels() -> list[LinearKernel[Int8Weight]]:
    return [*(NativeKernel(isa) for isa in support().isas), TorchInt8Kernel()]


def layer(inputs: int, outputs: int, *, bias: bool = True, activation: Activation = Activation.IDENTITY) -> Int8Weight:
    random = torch.Generator().manual_seed(inputs * 1000 + outputs)
    values = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    scale = torch.rand(outputs, generator=random) / 127
    return Int8Weight(values, scale, torch.randn(outputs, generator=random) if bias else None, activation=activation)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_every_kernel_gives_the_exact_sums(kernel: LinearKernel[Int8Weight], shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    x, weight = randn(rows, inputs), layer(inputs, outputs)

    assert torch.equal(kernel.prepare(weight)(x), exact_reference(x, weight))


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_int8_is_close_to_the_plain_layer(kernel: LinearKernel[Int8Weight]) -> None:
    x, weight = randn(40, 384), layer(384, 96)
    plain = Fp32Kernel().prepare(weight)(x)

    assert (kernel.prepare(weight)(x) - plain).norm() / plain.norm() < 0.01


@pytest.mark.parametrize("activation", list(Activation))
def test_activations_are_torchs(activation: Activation) -> None:
    """And of the same bits on all of our instruction sets, though not torch's bits."""
    x, weight = randn(9, 200) * 3, layer(200, 70, activation=activation)
    expected = exact_reference(x, weight)
    answers = [NativeKernel(isa).prepare(weight)(x) for isa in support().isas]

    for answer in answers:
        torch.testing.assert_close(answer, expected, rtol=5e-6, atol=2e-6)
        assert torch.equal(answer, answers[0])


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_no_sum_saturates(kernel: LinearKernel[Int8Weight]) -> None:
    """Everything at the ends of the range: where processors without VNNI lose bits in 16-bit sums."""
    weight = Int8Weight(torch.full((64, 4096), 127, dtype=torch.int8), torch.ones(64), None)

    answer = kernel.prepare(weight)(torch.full((2, 4096), -1.0))

    assert torch.equal(answer, exact_reference(torch.full((2, 4096), -1.0), weight))
    torch.testing.assert_close(answer, torch.full((2, 64), -127.0 * 4096))


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 16, 17, 31, 32, 33, 127, 128, 129, 300])
def test_a_row_is_the_same_alone_and_anywhere_in_a_batch(rows: int, isa: Isa) -> None:
    kernel = kernels()[0]
    run = kernel.prepare(layer(96, 80, activation=Activation.GELU))
    x = randn(rows, 96)

    together = run(x)

    for at in {0, rows // 2, rows - 1}:
        assert torch.equal(run(x[at : at + 1])[0], together[at])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
    assert torch.equal(run(x[order].contiguous()), together[order])


@pytest.mark.parametrize("rows", [3, 64, 200])
def test_two_threads_give_the_bits_of_one(rows: int, isa: Isa, threads: Callable[[int], None]) -> None:
    """Also where the rows are too few to share out, and columns are shared instead."""
    run = kernels()[0].prepare(layer(640, 1300))
    x = randn(rows, 640)
    one = run(x)

    threads(2)

    assert torch.equal(run(x), one)


@pytest.mark.parametrize("outputs", [512, 656, 650])
def test_answers_too_many_for_the_caches_are_no_different(
    outputs: int, isa: Isa, threads: Callable[[int], None]
) -> None:
    """From a megabyte on, some kernels write past the caches."""
    x, weight = randn(520, 70), layer(70, outputs)
    run, expected = kernels()[0].prepare(weight), exact_reference(x, weight)

    assert torch.equal(run(x), expected)
    threads(2)
    assert torch.equal(run(x), expected)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_a_poisoned_row_answers_nan_and_disturbs_no_other(kernel: LinearKernel[Int8Weight], poison: float) -> None:
    assert_poison_keeps_to_its_row(kernel.prepare(layer(100, 40)), randn(35, 100), poison)


@pytest.mark.parametrize("kernel", [*kernels(), Fp32Kernel()], ids=lambda kernel: kernel.name)
def test_no_rows_are_no_problem(kernel: LinearKernel[Int8Weight]) -> None:
    assert kernel.prepare(layer(64, 48))(torch.empty(0, 64)).shape == (0, 48)


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e30, 3e38])
def test_rows_of_any_size_keep_their_exactness(kernel: LinearKernel[Int8Weight], size: float) -> None:
    x, weight = randn(4, 90).clamp(-1, 1) * size, layer(90, 33, bias=False)

    assert torch.equal(kernel.prepare(weight)(x), exact_reference(x, weight))


def test_rows_may_lie_apart_in_memory(isa: Isa) -> None:
    """A slice of a wider matrix is taken as it is."""
    wide, weight = randn(12, 200), layer(64, 48)
    run = kernels()[0].prepare(weight)

    assert torch.equal(run(wide[:, 40:104]), run(wide[:, 40:104].contiguous()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 70), inputs=st.integers(1, 200), outputs=st.integers(1, 150), bias=st.booleans())
def test_all_kernels_agree_for_any_shape(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    x, weight = randn(rows, inputs), layer(inputs, outputs, bias=bias)
    expected = exact_reference(x, weight)

    assert all(torch.equal(kernel.prepare(weight)(x), expected) for kernel in kernels())


def test_quantized_rows_are_within_half_a_step() -> None:
    x = randn(20, 77)

    values, scale = quantize_rows(x)

    assert values.abs().max() == 127
    assert ((values * scale - x).abs() <= scale / 2 * 1.0001).all()


class _Saturating:
    """A kernel as a processor without VNNI computes it: u8 x s8, and sums of two products are cut to 16 bits."""

    name = "saturating"

    def numerics(self, _shape: object) -> str:
        return "int8"

    def refusal(self, _shape: object) -> str:
        return ""

    def prepare(self, weight: Int8Weight) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            values, scale = quantize_rows(x)
            products = (values.int() + 128)[:, None, :] * weight.values[None].int()
            products = torch.nn.functional.pad(products, (0, products.shape[2] % 2))
            sums = products.reshape(*products.shape[:2], -1, 2).sum(3).clamp(-32768, 32767).sum(2)
            y = (sums - 128 * weight.values.int().sum(1)).float() * (scale * weight.scale)
            return weight.activation(y if weight.bias is None else y + weight.bias)

        return run


def test_the_self_test_passes_our_kernels_and_knows_one_that_saturates() -> None:
    assert [failure(kernel) for kernel in kernels()] == [""] * len(kernels())
    assert "all at the maximum" in failure(_Saturating())
