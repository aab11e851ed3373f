"""Weights of few bits under floating-point inputs: fp32's answers from an eighth of its bytes, whatever the batch."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.kernels import selection
from headrace_workers.kernels.affine import NativeAffineKernel, affine_failure, affine_kernels, requantized
from headrace_workers.kernels.layers import AffineLinear
from headrace_workers.kernels.library import Isa, support
from headrace_workers.kernels.linear import FP32, Fp32Kernel
from headrace_workers.kernels.selection import BUCKETS, KernelTable
from headrace_workers.kernels.weights import Activation, AffineWeight

native = pytest.mark.skipif(not support().isas, reason=support().reason)


def weight(
    inputs: int = 96,
    outputs: int = 80,
    *,
    bits: int = 4,
    group: int | None = 32,
    zero: bool = True,
    activation: Activation = Activation.IDENTITY,
) -> AffineWeight:
    random = torch.Generator().manual_seed(inputs * 1000 + outputs + bits)
    groups = 1 if group is None else -(-inputs // group)
    return AffineWeight(
        torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8),
        torch.rand(outputs, groups, generator=random) / (1 << bits),
        torch.randint(0, 1 << bits, (outputs, groups), generator=random, dtype=torch.uint8) if zero else None,
        torch.randn(outputs, generator=random),
        bits=bits,
        group=group,
        activation=activation,
    )


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain(x: Tensor, layer: AffineWeight) -> Tensor:
    """What the layer stands for, in float64."""
    assert layer.bias is not None
    return layer.activation(x.double() @ layer.dequantized().double().t() + layer.bias)


@pytest.fixture
def few_bits(isa: Isa) -> AffineLinear:
    """A prepared layer of four bits."""
    layer = AffineLinear(weight())
    layer.prepare(KernelTable())
    layer.release()
    return layer


def test_a_layer_of_four_bits_answers_like_the_plain_layer(few_bits: AffineLinear) -> None:
    x = randn(2, 10, 96)

    torch.testing.assert_close(few_bits(x).double(), plain(x, weight()), rtol=1e-5, atol=1e-5)


@native
@pytest.mark.parametrize("rows", [1, 2, 6, 7, 12, 13, 32, 33, 130])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_is_the_same_alone_and_anywhere_in_a_batch(rows: int, bits: int) -> None:
    run, x = NativeAffineKernel().prepare(weight(bits=bits, activation=Activation.SILU)), randn(rows, 96)

    together = run(x)

    assert all(torch.equal(run(x[at : at + 1])[0], together[at]) for at in range(rows))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
    assert torch.equal(run(x[order].contiguous()), together[order])


@native
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    bits=st.integers(2, 8),
    group=st.none() | st.integers(1, 70),
    zero=st.booleans(),
)
def test_any_shape_any_bits_any_group(
    rows: int, inputs: int, outputs: int, bits: int, group: int | None, zero: bool
) -> None:
    layer, x = weight(inputs, outputs, bits=bits, group=group, zero=zero), randn(rows, inputs)

    answer = NativeAffineKernel().prepare(layer)(x)

    torch.testing.assert_close(answer.double(), plain(x, layer), rtol=1e-5, atol=2e-5)


@native
@pytest.mark.parametrize("activation", list(Activation))
def test_activations_are_torchs(activation: Activation) -> None:
    layer, x = weight(activation=activation), randn(9, 96)

    torch.testing.assert_close(NativeAffineKernel().prepare(layer)(x).double(), plain(x, layer), rtol=1e-5, atol=1e-5)


@native
@pytest.mark.parametrize("rows", [3, 64])
def test_two_threads_give_the_bits_of_one(rows: int, threads: Callable[[int], None]) -> None:
    run, x = NativeAffineKernel().prepare(weight(640, 1300)), randn(rows, 640)
    one = run(x)

    threads(2)

    assert torch.equal(run(x), one)


@native
def test_a_poisoned_row_disturbs_no_other() -> None:
    run, x = NativeAffineKernel().prepare(weight()), randn(20, 96)
    clean = run(x)
    x[7, 95] = torch.nan

    answer = run(x)

    assert answer[7].isnan().all()
    others = [at for at in range(20) if at != 7]
    assert torch.equal(answer[others], clean[others])


@native
def test_rows_may_lie_apart_in_memory() -> None:
    run, wide = NativeAffineKernel().prepare(weight()), randn(12, 200)

    assert torch.equal(run(wide[:, 40:136]), run(wide[:, 40:136].contiguous()))


def test_a_layer_that_is_slower_than_fp32_stays_in_fp32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(NativeAffineKernel):
        def prepare(self, weight: AffineWeight) -> Callable[[Tensor], Tensor]:
            run = Fp32Kernel().prepare(weight)

            def slow(x: Tensor) -> Tensor:
                until_s = time.thread_time() + 0.003
                while time.thread_time() < until_s:
                    pass
                return run(x)

            return slow

    monkeypatch.setattr(selection, "sound_affine_kernels", lambda: (Slow(),))
    layer = AffineLinear(weight())
    layer.prepare(KernelTable())

    assert layer.choice is not None
    assert layer.choice.numerics == FP32
    assert "96x80 affine4_group32 stays in fp32" in caplog.text


def test_inputs_are_rounded_only_where_that_is_asked_for() -> None:
    """Under the policy `int8` the weight is requantized, and the layer runs on the kernels of int8."""
    layer = AffineLinear(weight(512, 64))
    numerics = []
    for policy in ("measured", "int8"):
        layer.prepare(KernelTable(policy))
        assert layer.choice is not None
        numerics.append(layer.choice.numerics)
    x = randn(20, 512)
    expected = plain(x, weight(512, 64))

    assert numerics[0] in (FP32, "fp32-in-order")
    assert numerics[1] == "int8"
    assert 1e-4 < (layer(x) - expected).norm() / expected.norm() < 0.02


def test_requantizing_moves_no_weight_by_more_than_half_a_step() -> None:
    layer = weight(bits=8)
    int8 = requantized(layer)

    assert ((int8.dequantized() - layer.dequantized()).abs() <= int8.scale[:, None] * 0.501).all()


def test_the_self_test_passes_our_kernels_and_knows_wrong_ones() -> None:
    class IgnoresZeros(NativeAffineKernel):
        def prepare(self, weight: AffineWeight) -> Callable[[Tensor], Tensor]:
            scale, bias = weight.scale, weight.bias
            without = AffineWeight(weight.codes, scale, None, bias, bits=weight.bits, group=weight.group)
            return Fp32Kernel().prepare(without)

    class GoesByTheBatch(NativeAffineKernel):
        def prepare(self, weight: AffineWeight) -> Callable[[Tensor], Tensor]:
            run = Fp32Kernel().prepare(weight)
            return lambda x: run(x) * (1 + 1e-6 * (x.shape[0] > 1))

    assert [affine_failure(kernel) for kernel in affine_kernels()] == [""] * len(affine_kernels())
    assert "wrong sums" in affine_failure(IgnoresZeros())
    assert "depends on its batch" in affine_failure(GoesByTheBatch())


def test_shapes_of_other_bits_and_groups_are_measured_for_themselves() -> None:
    table = KernelTable("fp32")
    for layer in (weight(), weight(bits=5), weight(group=None), weight(bits=3)):
        assert len(table.choose(layer).kernels) == len(BUCKETS)

    assert [str(shape) for shape in table.choices] == [
        "96x80 affine4_group32",
        "96x80 affine5_group32",
        "96x80 affine4",
        "96x80 affine3_group32",
    ]


def test_expanded_it_is_a_plain_layer() -> None:
    model = torch.nn.Sequential(AffineLinear(weight()))
    expand_model(model)

    assert isinstance(model[0], torch.nn.Linear)
    assert torch.equal(model[0].weight, weight().dequantized())
