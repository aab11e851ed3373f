"""What is left when several things count at once: the candidates that no other one beats in everything.

Quality, speed and size are never added up. A candidate is out only if another is at least as good in all three and
better in one. Among the rest a target decides, or, where it leaves a choice, the knee.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Point", "front", "knee", "layers"]


@dataclass(frozen=True)
class Point:
    """What counts of one candidate, against the model as it came."""

    name: str
    quality: float
    """Share of the original's quality that is kept: 1 is as good."""
    speed: float
    """Times as fast."""
    size: float
    """Share of the original's bytes on disk: less is better."""

    @property
    def gains(self) -> tuple[float, float, float]:
        """All three, more being better."""
        return self.quality, self.speed, -self.size

    def dominates(self, other: Point) -> bool:
        """Whether it is at least as good in everything, and better in something."""
        return self.gains != other.gains and all(a >= b for a, b in zip(self.gains, other.gains, strict=True))


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other one dominates, in their order. NaN never belongs to it."""
    sound = [point for point in points if not _has_nan(point)]
    return [point for point in sound if not any(other.dominates(point) for other in sound)]


def layers(points: Sequence[Point]) -> list[list[Point]]:
    """The front, the front of what is left without it, and so on: non-dominated sorting (NSGA-II's, Deb 2002)."""
    found = []
    left = [point for point in points if not _has_nan(point)]
    while left:
        best = front(left)
        found.append(best)
        left = [point for point in left if point not in best]
    return found


def knee(points: Sequence[Point]) -> Point | None:
    """The point of a front from which going on in one direction costs most in the others; None if there is none.

    It is the one nearest to the best of each axis, with every axis scaled to the front's own extent: an axis on which
    nothing differs says nothing.
    """
    if not points:
        return None
    axes = list(zip(*(point.gains for point in points), strict=True))
    best, worst = [max(axis) for axis in axes], [min(axis) for axis in axes]

    def distance(point: Point) -> float:
        scaled = [
            (top - value) / (top - bottom)
            for value, top, bottom in zip(point.gains, best, worst, strict=True)
            if top > bottom
        ]
        return math.hypot(*scaled)

    return min(points, key=distance)


def _has_nan(point: Point) -> bool:
    return any(value != value for value in point.gains)
