"""GPTQ: outputs nearer than rounding to nearest leaves them, wherever inputs go together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace_workers.compression.quantization.affine import Grid
from headrace_workers.compression.quantization.gptq import Correlation, gptq


def correlated(rows: int, inputs: int) -> Tensor:
    """Inputs that go together as those of a network do: a few directions, and some noise."""
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(inputs // 8, inputs, generator=random)
    return torch.randn(rows, inputs // 8, generator=random) @ directions + 0.3 * torch.randn(
        rows, inputs, generator=random
    )


def seen(x: Tensor) -> Correlation:
    correlation = Correlation(x.shape[1])
    correlation.observe(x)
    return correlation


def dequantized(codes: Tensor, grid: Grid) -> Tensor:
    columns = codes.shape[1]
    scale, zero = (part.repeat_interleave(grid.group, 1)[:, :columns] for part in (grid.scale, grid.zero))
    return (codes - zero) * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_are_nearer_than_by_rounding(bits: int, group: int | None, act_order: bool) -> None:
    x = correlated(600, 160)
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(1))
    grid = Grid.of(weight, bits=bits, group=group)

    made = dequantized(gptq(weight, seen(x), grid, act_order=act_order), grid)
    rounded = dequantized(grid.codes(weight), grid)

    errors = [float((x @ (weight - other).T).norm()) for other in (made, rounded)]
    assert errors[0] < 0.7 * errors[1]


def test_inputs_that_are_alone_are_rounded_to_nearest() -> None:
    """Without correlations there is nothing that could make an error good."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    correlation = Correlation(32)
    correlation.sum, correlation.rows = torch.eye(32), 1
    grid = Grid.of(weight, bits=4)

    assert torch.equal(gptq(weight, correlation, grid), grid.codes(weight))


def test_zeros_stay_zeros_where_they_are_meant() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    weight[weight.abs() < 0.5] = 0
    correlation, grid = seen(correlated(300, 64)), Grid.of(weight, bits=4)

    kept = gptq(weight, correlation, grid, keep_zeros=True) != grid.zero
    free = gptq(weight, correlation, grid) != grid.zero

    assert not bool((kept & (weight == 0)).any())
    assert bool((free & (weight == 0)).any()), "without being told it fills them"


def test_an_input_that_never_came_is_rounded_to_nearest() -> None:
    x = correlated(300, 64)
    x[:, 5] = 0
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))
    grid = Grid.of(weight, bits=4)

    assert torch.equal(gptq(weight, seen(x), grid)[:, 5], grid.codes(weight)[:, 5])


def test_fewer_rows_than_inputs_are_damped() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    x = correlated(3, 64)
    grid = Grid.of(weight, bits=4)

    made = dequantized(gptq(weight, seen(x), grid), grid)

    assert float((x @ (weight - made).T).norm()) < float(
        (x @ (weight - dequantized(grid.codes(weight), grid)).T).norm()
    )


def test_correlations_of_parts_add_up() -> None:
    x = correlated(100, 32)

    merged = seen(x[:30]).merge(seen(x[30:]))

    assert merged.rows == 100
    assert torch.allclose(merged.sum, seen(x).sum, rtol=1e-4, atol=1e-2)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        seen(torch.tensor([[1.0, float("nan")]]))
    broken = Correlation(2)
    broken.sum.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        gptq(torch.ones(1, 2), broken, Grid.of(torch.ones(1, 2), bits=4))
