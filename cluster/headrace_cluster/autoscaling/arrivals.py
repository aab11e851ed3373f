"""How many jobs come in a second, from a counter that is looked at now and then."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["ArrivalRate"]

_QUICK_S: Final = 3.0
_STEADY_S: Final = 20.0
_CHANCE: Final = 3.0
"""By how many standard deviations the two averages may differ by chance."""


class _Fading:
    """An average of a rate of which the past fades: after `fade_s` seconds, what was counts for a third."""

    def __init__(self, fade_s: float) -> None:
        self.fade_s = fade_s
        self._sum_per_s = 0.0
        self._weight = 0.0

    def add(self, passed_s: float, per_s: float) -> None:
        stays = math.exp(-passed_s / self.fade_s)
        self._sum_per_s = stays * self._sum_per_s + (1 - stays) * per_s
        self._weight = stays * self._weight + (1 - stays)

    def become(self, other: _Fading) -> None:
        self._sum_per_s, self._weight = other._sum_per_s, other._weight

    @property
    def per_s(self) -> float:
        """The rate; while little was seen, that of what was seen."""
        return self._sum_per_s / self._weight if self._weight else 0.0


class ArrivalRate:
    """A steady average, which jumps to a quick one where the two differ by more than chance.

    So a constant load gives a constant rate, and of a burst the beginning and the end are seen within seconds. What
    chance is, the variance of Poisson arrivals says: a quick average of them has rate / (2 · fade) of it.
    """

    def __init__(self) -> None:
        self._count: int | None = None
        self._at_s = 0.0
        self._quick, self._steady = _Fading(_QUICK_S), _Fading(_STEADY_S)

    def note(self, now_s: float, count: int) -> float:
        """So many had come by now; returns the rate in jobs a second. A counter that fell begins anew."""
        if self._count is None or count < self._count or now_s < self._at_s:
            self._count, self._at_s = count, now_s
            self._quick, self._steady = _Fading(_QUICK_S), _Fading(_STEADY_S)
        passed_s = now_s - self._at_s
        if passed_s > 0:
            per_s = (count - self._count) / passed_s
            self._quick.add(passed_s, per_s)
            self._steady.add(passed_s, per_s)
            self._count, self._at_s = count, now_s
            if self._has_changed():
                self._steady.become(self._quick)
        return self.per_s

    def _has_changed(self) -> bool:
        quick, steady = self._quick.per_s, self._steady.per_s
        return abs(quick - steady) > _CHANCE * math.sqrt(max(quick, steady) / (2 * _QUICK_S))

    @property
    def per_s(self) -> float:
        """Jobs a second, of late."""
        return self._steady.per_s
