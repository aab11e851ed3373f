"""Affine quantization: grids of 2–8 bits, how near they come, and what they never lose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_workers.compression.quantization.affine import Grid, affine_weight, int8_weight, quantize_affine
from headrace_workers.compression.quantization.quantize import round_to_nearest
from headrace_workers.kernels.weights import AffineWeight


def test_four_bits_have_sixteen_values_for_each_group() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))

    quantized = quantize_affine(weight, bits=4, group=32, symmetric=False)

    assert (quantized.codes.dtype, quantized.codes.shape) == (torch.uint8, (8, 64))
    assert quantized.scale.shape == (8, 2)
    assert len(set(quantized.dequantized()[0, :32].tolist())) <= 16
    assert float((quantized.dequantized() - weight).norm() / weight.norm()) < 0.1


def test_a_grid_of_its_own_zero_makes_more_of_one_sided_weights() -> None:
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(2))

    errors = [(quantize_affine(weight, bits=4, symmetric=sym).dequantized() - weight).norm() for sym in (True, False)]

    assert errors[1] < 0.7 * errors[0]


def test_symmetric_weights_need_no_zeros() -> None:
    assert quantize_affine(torch.randn(2, 8), bits=3).zero is None


@settings(deadline=None, max_examples=100)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([None, 8, 16, 33]),
    symmetric=st.booleans(),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    shift=st.sampled_from([0.0, 1.5, -3.0]),
    seed=st.integers(0, 99),
)
def test_every_weight_is_within_half_a_scale(
    bits: int, group: int | None, symmetric: bool, size: float, shift: float, seed: int
) -> None:
    weight = (torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) + shift) * size

    quantized = quantize_affine(weight, bits=bits, group=group, symmetric=symmetric)

    by_column = quantized.scale.repeat_interleave(group or 40, dim=1)[:, :40]
    assert int(quantized.codes.max()) < 1 << bits
    assert bool(((quantized.dequantized() - weight).abs() <= by_column * 0.5001).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_zeros_stay_zeros(symmetric: bool, search: bool) -> None:
    """What was pruned stays pruned, also between weights that are all positive."""
    weight = torch.rand(4, 64) + 1
    weight[:, ::3] = 0

    quantized = quantize_affine(weight, bits=4, group=16, symmetric=symmetric, search=search)

    assert int(quantized.dequantized()[:, ::3].count_nonzero()) == 0


def test_a_group_of_zeros_is_no_division_by_zero() -> None:
    quantized = quantize_affine(torch.zeros(2, 16), bits=4, group=8)

    assert quantized.dequantized().tolist() == torch.zeros(2, 16).tolist()


@pytest.mark.parametrize(("bits", "least_gain"), [(2, 0.1), (3, 0.05), (4, 0.02)])
def test_a_searched_grid_errs_less(bits: int, least_gain: float) -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(3))

    plain, searched = (
        float((quantize_affine(weight, bits=bits, group=64, search=search).dequantized() - weight).square().sum())
        for search in (False, True)
    )

    assert searched < plain * (1 - least_gain)


def test_eight_symmetric_bits_are_the_int8_of_the_simple_way() -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    grid = Grid.of(weight, bits=8)

    made = int8_weight(grid, grid.codes(weight), None)

    values, scale = round_to_nearest(weight)
    assert torch.equal(made.values, values)
    assert torch.equal(made.scale, scale)


def test_int8_never_takes_its_lowest_code() -> None:
    """-128 has no counterpart; kernels that swap signs would overflow."""
    grid = Grid.of(torch.tensor([[1.0, -1.0]]), bits=8)

    assert int8_weight(grid, grid.codes(torch.tensor([[5.0, -5.0]])), None).values.tolist() == [[127, -127]]


def test_one_group_is_no_group() -> None:
    grid = Grid.of(torch.ones(2, 16), bits=4, group=16)

    assert affine_weight(grid, grid.codes(torch.ones(2, 16)), None).group is None


def test_scales_must_fit_groups() -> None:
    with pytest.raises(ValueError, match="3 groups of 2 outputs"):
        AffineWeight(torch.zeros(2, 40, dtype=torch.uint8), torch.ones(2, 2), None, None, bits=4, group=16)
