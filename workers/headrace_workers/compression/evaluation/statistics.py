"""The arithmetic of judging: how far two models' answers are apart, and how sure a figure is of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "bootstrap", "kl_of_rows", "neighbours_kept", "spearman"]

_RESAMPLES: Final = 200
_LEVEL: Final = 0.95
_ROWS_AT_ONCE: Final = 256
"""Rows of logits that are looked at together: a vocabulary of 50,000 makes 50 MB of them."""


class Interval(NamedTuple):
    """Where a figure lies, with 95 % of confidence."""

    low: float
    high: float


def bootstrap(figure: Callable[[Tensor], float], count: int, *, seed: int) -> Interval:
    """The percentile bootstrap's interval of a figure (Efron 1979).

    Args:
        figure: takes the places of examples, int64 [count], with repetitions, and gives the figure for those.
        count: how many examples there are.
        seed: of the resampling.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [figure(torch.randint(count, (count,), generator=generator)) for _ in range(_RESAMPLES)]
    tail = (1 - _LEVEL) / 2
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(float(low), float(high))


def kl_of_rows(original: Tensor, other: Tensor) -> Tensor:
    """KL(original ‖ other) of the distributions that rows of logits stand for, in nats.

    Args:
        original: float32 [rows, classes].
        other: the same.

    Returns:
        float32 [rows], none below zero.
    """
    parts = zip(torch.split(original, _ROWS_AT_ONCE), torch.split(other, _ROWS_AT_ONCE), strict=True)
    return torch.cat([_kl(one, two) for one, two in parts]).clamp_min(0)


def _kl(original: Tensor, other: Tensor) -> Tensor:
    meant, said = original.log_softmax(-1), other.log_softmax(-1)
    return (meant.exp() * (meant - said)).sum(-1)


def spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of two series' ranks, in -1..1; ties share the mean of their ranks.

    Args:
        one: float [count].
        other: the same.
    """
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    spread = a.norm() * b.norm()
    return float(a @ b / spread) if spread > 0 else 1.0


def _ranks(values: Tensor) -> Tensor:
    place, counts = torch.unique(values, return_inverse=True, return_counts=True)[1:]
    middle: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return middle[place]


def neighbours_kept(original: Tensor, other: Tensor) -> Tensor:
    """For which examples the nearest other one is the same in both spaces.

    Args:
        original: float32 [examples, width], of length one.
        other: float32 [examples, another width], of length one.

    Returns:
        bool [examples]
    """
    return _nearest(original) == _nearest(other)


def _nearest(vectors: Tensor) -> Tensor:
    return (vectors @ vectors.T).fill_diagonal_(-torch.inf).argmax(1)
