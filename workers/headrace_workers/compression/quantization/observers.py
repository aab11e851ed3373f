"""Observers: what range a layer's input has, learned from calibration data.

Each is a small sum of what it saw, and two of them can be merged into what one would have been that saw everything:
workers may look at parts of the data, in any order, and the range is the same. A histogram manages that by the width
of its bins: always a power of two, the least at which everything fits, so that bins of one width are exactly two bins
of the width below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final, Literal, NamedTuple, Self

import torch
from torch import Tensor

__all__ = [
    "ChannelMaxObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
    "Range",
    "make_observer",
]

BINS: Final = 2048
_LEVELS: Final = 255
"""Steps of an activation in uint8."""
_LEAST_EXPONENT: Final = -140
_CANDIDATES: Final = 256
"""Ends of a range that are tried on each side."""


class Range(NamedTuple):
    """The values that are represented; others are clipped to them."""

    low: float
    high: float


class Observer(ABC):
    """Sees values and says what range to give them. Whoever shows it values leaves padding out."""

    @abstractmethod
    def observe(self, values: Tensor) -> None:
        """See some values.

        Raises:
            ValueError: one of them is not finite.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """What one observer would be that saw what both saw. Associative and commutative, to the bit."""

    @abstractmethod
    def range(self) -> Range:
        """The range, with zero in it.

        Raises:
            ValueError: nothing was seen.
        """


class MinMaxObserver(Observer):
    """All that was seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def observe(self, values: Tensor) -> None:
        """See `Observer`."""
        if values.numel():
            low, high = _extremes(values)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: Self) -> Self:
        """See `Observer`."""
        merged = type(self)()
        merged.low, merged.high = min(self.low, other.low), max(self.high, other.high)
        return merged

    def range(self) -> Range:
        """See `Observer`."""
        return _with_zero(self.low, self.high)


class _Binned(Observer):
    """Counts values in up to `BINS` bins; bin i holds `i * 2^exponent <= value < (i + 1) * 2^exponent`."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.exponent = _LEAST_EXPONENT
        self.first = 0
        self.counts = torch.zeros(0, dtype=torch.long)

    def observe(self, values: Tensor) -> None:
        """See `Observer`."""
        if not values.numel():
            return
        seen = self._anew()
        seen.low, seen.high = _extremes(values)
        seen.exponent = _exponent(seen.low, seen.high)
        places = _places(values, seen.exponent)
        seen.first = int(places.min())
        seen.counts = torch.bincount(places - seen.first)
        self.__dict__ |= self.merge(seen).__dict__

    def merge(self, other: Self) -> Self:
        """See `Observer`."""
        merged = self._anew()
        merged.low, merged.high = min(self.low, other.low), max(self.high, other.high)
        if merged.low > merged.high:
            return merged
        merged.exponent = _exponent(merged.low, merged.high)
        parts = [part._coarser(merged.exponent) for part in (self, other) if len(part.counts)]
        merged.first = min(first for first, _ in parts)
        merged.counts = torch.zeros(
            max(first + len(counts) for first, counts in parts) - merged.first, dtype=torch.long
        )
        for first, counts in parts:
            merged.counts[first - merged.first :][: len(counts)] += counts
        return merged

    def _anew(self) -> Self:
        return type(self)()

    def _coarser(self, exponent: int) -> tuple[int, Tensor]:
        """The first bin and the counts at a larger width."""
        shift = exponent - self.exponent
        places = (torch.arange(len(self.counts)) + self.first) >> min(shift, 62)
        first = int(places[0])
        counts = torch.zeros(int(places[-1]) - first + 1, dtype=torch.long)
        return first, counts.index_add_(0, places - first, self.counts)

    def _edges(self) -> Tensor:
        """Float64 [bins + 1], no further out than what was seen."""
        edges = torch.arange(self.first, self.first + len(self.counts) + 1).double() * 2.0**self.exponent
        return edges.clamp(self.low, self.high)


class PercentileObserver(_Binned):
    """All but the outermost values on either side.

    Args:
        percentile: which share of the values, in percent, is not above the range, and not below it.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        self.percentile = percentile

    def _anew(self) -> Self:
        return type(self)(self.percentile)

    def range(self) -> Range:
        """See `Observer`."""
        if not len(self.counts):
            return _with_zero(self.low, self.high)
        edges, below = self._edges(), self.counts.cumsum(0)
        outside = int(below[-1]) * (1 - self.percentile / 100)
        low = int((below <= outside).sum())
        high = int((below < int(below[-1]) - outside).sum()) + 1
        return _with_zero(float(edges[low]), float(edges[min(high, len(edges) - 1)]))


class HistogramObserver(_Binned):
    """The range of least expected squared error in 256 levels: half a step where it reaches, clipping where not."""

    def range(self) -> Range:
        """See `Observer`."""
        if not len(self.counts):
            return _with_zero(self.low, self.high)
        edges, counts = self._edges(), self.counts.double()
        centers = (edges[1:] + edges[:-1]) / 2
        step = max(1, len(counts) // _CANDIDATES)
        low = torch.cat([edges[:-1][edges[:-1] < 0][::step], edges.new_zeros(1)])
        high = torch.cat([edges[1:][edges[1:] > 0].flip(0)[::step], edges.new_zeros(1)])
        clipped_low = _clipped(-centers, counts, -low)
        clipped_high = _clipped(centers, counts, high)
        rounding = ((high[None, :] - low[:, None]) / _LEVELS).square() / 12 * counts.sum()
        best = int((rounding + clipped_low[:, None] + clipped_high[None, :]).argmin())
        return _with_zero(float(low[best // len(high)]), float(high[best % len(high)]))


class ChannelMaxObserver:
    """The largest magnitude of each channel."""

    def __init__(self) -> None:
        self.largest = torch.zeros(0)

    def observe(self, values: Tensor) -> None:
        """See rows, [rows, channels].

        Raises:
            ValueError: one of them is not finite.
        """
        if values.numel():
            _extremes(values)
            seen = values.abs().amax(0).float()
            self.largest = torch.maximum(self.largest, seen) if len(self.largest) else seen

    def merge(self, other: ChannelMaxObserver) -> ChannelMaxObserver:
        """What one observer would be that saw what both saw."""
        merged = ChannelMaxObserver()
        seen = [part.largest for part in (self, other) if len(part.largest)]
        merged.largest = torch.stack(seen).amax(0) if seen else torch.zeros(0)
        return merged


def make_observer(kind: Literal["minmax", "percentile", "histogram"], *, percentile: float = 99.99) -> Observer:
    """An observer by the name that recipes have for it."""
    match kind:
        case "minmax":
            return MinMaxObserver()
        case "percentile":
            return PercentileObserver(percentile)
        case "histogram":
            return HistogramObserver()


def _extremes(values: Tensor) -> tuple[float, float]:
    low, high = (float(end) for end in torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("a value is not finite")
    return low, high


def _with_zero(low: float, high: float) -> Range:
    if low > high:
        raise ValueError("nothing was observed")
    return Range(min(low, 0.0), max(high, 0.0))


def _exponent(low: float, high: float) -> int:
    """The least width, from a 4096th of the largest magnitude up, at which all between two values has `BINS` bins.

    It never falls when the interval grows, or bins would have to be divided.
    """
    largest = max(abs(low), abs(high))
    if largest == 0:
        return _LEAST_EXPONENT
    exponent = max(_LEAST_EXPONENT, math.frexp(largest)[1] - 12)
    while math.floor(high * 2.0**-exponent) - math.floor(low * 2.0**-exponent) >= BINS:
        exponent += 1
    return exponent


def _places(values: Tensor, exponent: int) -> Tensor:
    """The bin of each value: int64 [values]."""
    return (values.detach().reshape(-1).double() * 2.0**-exponent).floor().long()


def _clipped(values: Tensor, counts: Tensor, limits: Tensor) -> Tensor:
    """Squared error of clipping values from above, at each of the limits: float64 [limits]."""
    over = (values[None, :] - limits[:, None]).clamp_min(0)
    return over.square() @ counts
