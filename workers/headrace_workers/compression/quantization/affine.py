"""Uniform affine quantization of weights to 2–8 bits: a grid for each row, or each group of its columns.

A grid says which values the codes of a group stand for: `(code - zero) * scale`. It always holds zero itself, so what
was pruned stays pruned. By default it reaches to the group's extremes; searched, it gives these up where the others
gain more in squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["Grid", "affine_weight", "int8_weight", "quantize_affine"]

_SHARES: Final = tuple(1.0 - step / 25 for step in range(12))
"""How much of a group's reach a searched grid may keep: from all of it to 56 %, where two bits may end."""

_SEARCHED_AT_ONCE: Final = 1 << 16
"""Weights whose grids are looked for together."""
_LEAST_HALF: Final = torch.finfo(torch.float16).smallest_normal
_MOST_HALF: Final = torch.finfo(torch.float16).max / 2
_NEXT_HALF: Final = 1 + 2.0**-10


@dataclass(frozen=True)
class Grid:
    """Which values codes stand for. One row of `scale` for each output, one column for each group."""

    scale: Tensor
    """Float32 [outputs, groups]."""
    zero: Tensor
    """Float32 [outputs, groups], whole numbers in 0..2^bits - 1."""
    bits: int
    group: int
    """Columns that share a scale."""
    symmetric: bool

    @staticmethod
    def of(
        weight: Tensor, *, bits: int, group: int | None = None, symmetric: bool = True, search: bool = False
    ) -> Grid:
        """The grid for a matrix.

        Args:
            weight: floating point [outputs, inputs], finite.
            bits: 2 to 8.
            group: columns that share a scale; None: all of them.
            symmetric: whether the middle code stands for zero; else each group has its own zero.
            search: look for the reach of least squared error instead of taking the extremes.
        """
        columns = group or max(1, weight.shape[1])
        groups = _grouped(weight.detach().float(), columns)
        if not search:
            return _grid(groups, 1.0, bits, columns, symmetric)
        # Some rows at a time, which stay in the processor's cache from one candidate to the next.
        rows = max(1, _SEARCHED_AT_ONCE // max(1, weight.shape[1]))
        found = [_searched(part, bits, columns, symmetric) for part in torch.split(groups, rows)]
        scale, zero = (torch.cat(parts) for parts in zip(*((grid.scale, grid.zero) for grid in found), strict=True))
        return Grid(scale, zero, bits, columns, symmetric)

    @property
    def lowest(self) -> int:
        """The lowest code that is used. Symmetric int8 keeps to -127..127, as kernels want it."""
        return 1 if self.symmetric and self.bits == 8 else 0

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest code of each element: float32 [outputs, inputs]."""
        codes = self._codes(_grouped(weight, self.group), self.scale[..., None], self.zero[..., None])
        return codes.flatten(1)[:, : weight.shape[1]]

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """The nearest values that codes of a column stand for: float32 [outputs]."""
        scale, zero = self.scale[:, column // self.group], self.zero[:, column // self.group]
        return (self._codes(values, scale, zero) - zero) * scale

    def _codes(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ((values / scale).round() + zero).clamp(self.lowest, (1 << self.bits) - 1)

    def _error(self, groups: Tensor) -> Tensor:
        """Squared error of each group: [outputs, groups]."""
        scale, zero = self.scale[..., None], self.zero[..., None]
        return ((self._codes(groups, scale, zero) - zero) * scale - groups).square().sum(2)


def quantize_affine(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    search: bool = False,
) -> AffineWeight:
    """Round a matrix to nearest.

    Without `search` each element is within half a scale of what it was. Arguments are those of `Grid.of`; `bias` is
    kept in float32.
    """
    grid = Grid.of(weight, bits=bits, group=group, symmetric=symmetric, search=search)
    return affine_weight(grid, grid.codes(weight.detach().float()), bias)


def affine_weight(grid: Grid, codes: Tensor, bias: Tensor | None) -> AffineWeight:
    """A layer's weight from codes on a grid, [outputs, inputs]."""
    return AffineWeight(
        codes.to(torch.uint8),
        grid.scale,
        None if grid.symmetric else grid.zero.to(torch.uint8),
        None if bias is None else bias.detach().float(),
        bits=grid.bits,
        group=grid.group if grid.scale.shape[1] > 1 else None,
    )


def int8_weight(grid: Grid, codes: Tensor, bias: Tensor | None) -> Int8Weight:
    """The same for int8 kernels; the grid must be symmetric, of 8 bits, with one scale for each row."""
    assert (grid.bits, grid.symmetric, grid.scale.shape[1]) == (8, True, 1), "int8 kernels know one scale for each row"
    values = (codes - grid.zero).to(torch.int8)
    return Int8Weight(values, grid.scale[:, 0].contiguous(), None if bias is None else bias.detach().float())


def _grid(groups: Tensor, share: float, bits: int, group: int, symmetric: bool) -> Grid:
    """The grid that reaches to `share` of each group's extremes."""
    levels = (1 << bits) - 1
    if symmetric:
        midpoint = 1 << (bits - 1)
        scale = _scales(groups.abs().amax(2) * share / (midpoint - 1))
        return Grid(scale, torch.full_like(scale, midpoint), bits, group, symmetric)
    low, high = groups.amin(2).clamp_max(0) * share, groups.amax(2).clamp_min(0) * share
    scale = _scales(high / levels - low / levels)
    return Grid(scale, (-low / scale).round().clamp(0, levels), bits, group, symmetric)


def _searched(groups: Tensor, bits: int, group: int, symmetric: bool) -> Grid:
    """For each group the grid, of those that reach to some share of its extremes, with the least squared error."""
    best = _grid(groups, 1.0, bits, group, symmetric)
    best_error = best._error(groups)
    for share in _SHARES[1:]:
        candidate = _grid(groups, share, bits, group, symmetric)
        error = candidate._error(groups)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        scale, zero = torch.where(better, candidate.scale, best.scale), torch.where(better, candidate.zero, best.zero)
        best = Grid(scale, zero, bits, group, symmetric)
    return best


def _scales(scale: Tensor) -> Tensor:
    """Scales that can be divided by; where a row has several, such as float16 holds, if it holds them well."""
    scale = torch.where(scale > 0, scale, 1.0)
    if scale.shape[1] == 1 or not bool(((scale >= _LEAST_HALF) & (scale <= _MOST_HALF)).all()):
        return scale
    nearest = scale.half().float()
    return torch.where(nearest >= scale, nearest, (scale * _NEXT_HALF).half().float())  # less would not reach


def _grouped(weight: Tensor, group: int) -> Tensor:
    """[outputs, inputs] to [outputs, groups, group], the last group filled up with zeros, which every grid holds."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % group))
    return padded.view(weight.shape[0], -1, group)
