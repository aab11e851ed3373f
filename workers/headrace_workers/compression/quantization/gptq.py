"""GPTQ: rounding a matrix column by column, each column's error made good by the columns not yet rounded.

What counts is not how near the weights stay but how near the layer's outputs do, and that depends on how its inputs
go together. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323: the inverse of the inputs' correlations, by Cholesky, says what a column's error costs and how much of
it each later column can take over.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from headrace_workers.compression.quantization.affine import Grid

__all__ = ["Correlation", "gptq"]

_BLOCK: Final = 128
"""Columns after which the error is handed on to all that follow."""
_DAMPING: Final = 0.01
_MOST_DAMPING: Final = 10.0


class Correlation:
    """How a layer's inputs go together: the sum of x xᵀ over all that were seen, and their number."""

    def __init__(self, inputs: int) -> None:
        self.sum = torch.zeros(inputs, inputs)
        self.rows = 0

    def observe(self, rows: Tensor) -> None:
        """See inputs, float32 [rows, inputs].

        Raises:
            ValueError: one of them is not finite.
        """
        self.sum.addmm_(rows.T, rows)
        self.rows += rows.shape[0]
        if not bool(self.sum.diagonal().sum().isfinite()):
            raise ValueError("a value is not finite")

    def merge(self, other: Correlation) -> Correlation:
        """What one would be that saw what both saw."""
        merged = Correlation(self.sum.shape[0])
        merged.sum, merged.rows = self.sum + other.sum, self.rows + other.rows
        return merged

    def output_error(self, difference: Tensor) -> float:
        """The mean squared error, summed over outputs, that a difference of weights [outputs, inputs] makes."""
        return float(((difference @ self.sum) * difference).sum()) / max(1, self.rows)


def gptq(
    weight: Tensor,
    correlation: Correlation,
    grid: Grid,
    *,
    damping: float = _DAMPING,
    act_order: bool = False,
    keep_zeros: bool = False,
) -> Tensor:
    """Round a matrix so that its outputs change least.

    Args:
        weight: floating point [outputs, inputs].
        correlation: of the layer's inputs.
        grid: which values there are; it stays as it is.
        damping: added to the correlations' diagonal, as a share of its mean. More is taken where it does not suffice.
        act_order: round the columns of the strongest inputs first.
        keep_zeros: what is zero stays zero: the weights of a pruned layer.

    Returns:
        The codes on the grid, float32 [outputs, inputs].

    Raises:
        ValueError: the correlations are not those of finite inputs.
    """
    order = torch.arange(weight.shape[1])
    if act_order:
        order = correlation.sum.diagonal().argsort(descending=True)
    upper = _inverse_factor(correlation.sum[order][:, order] / max(1, correlation.rows), damping)
    left = weight.detach().float().T[order]  # [inputs, outputs]: what is rounded at a time lies together
    free = left != 0 if keep_zeros else torch.ones(left.shape[0], 1, dtype=torch.bool)
    for start in range(0, left.shape[0], _BLOCK):
        block = slice(start, start + _BLOCK)
        errors = _round_block(left[block], free[block], upper[block, block], grid, order[block])
        left[start + _BLOCK :].addmm_(upper[block, start + _BLOCK :].T, errors, alpha=-1)
    return grid.codes(left[order.argsort()].T)


def _round_block(left: Tensor, free: Tensor, upper: Tensor, grid: Grid, places: Tensor) -> Tensor:
    """Round some columns one after the other, in place; the errors to be handed on, [columns, outputs]."""
    errors = torch.empty_like(left)
    for column, (place, own) in enumerate(zip(places.tolist(), upper.diagonal().tolist(), strict=True)):
        values = grid.nearest(left[column], place) * free[column]
        torch.div(left[column] - values, own, out=errors[column])
        left[column + 1 :].addr_(upper[column, column + 1 :], errors[column], alpha=-1)
        left[column] = values
    return errors


def _inverse_factor(correlation: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped correlations' inverse, [inputs, inputs]."""
    diagonal = correlation.diagonal().clone()
    if not bool(diagonal.isfinite().all()):
        raise ValueError("correlations that are not finite")
    mean = float(diagonal.mean()) or 1.0
    while damping <= _MOST_DAMPING:
        # An input that was never there has no correlations: its column is rounded to nearest, and takes over nothing.
        damped = torch.where(diagonal > 0, diagonal, mean) + damping * mean
        factor, failed = torch.linalg.cholesky_ex(torch.diagonal_scatter(correlation, damped))
        if not int(failed):
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not int(failed):
                return upper
        damping *= 10
    raise ValueError("correlations that no damping makes positive definite")
