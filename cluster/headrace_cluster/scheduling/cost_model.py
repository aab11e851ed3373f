"""How long a batch takes on one pool: learned from what batches took, and sane before the first of them.

Where a batch goes, how many replicas a backlog needs and who is late all rest on this one number. It is linear,
seconds = c0 + c1 · jobs + c2 · tokens, which is right for packed encoders within a few per cent; that it stays simple
is what lets it learn from ten batches.

Least squares with forgetting, kept in information form and with the prior as a ridge that is never forgotten
(Kulhavý & Zarrop 1993, "On a general concept of forgetting"): a pool that sees one size of batch only cannot wind the
covariance up. Each batch counts by its relative error, and no more than one batch should: what is far off is clipped,
the harder the more it would move (Mallows' weights). When several in a row are far off to the same side, the pool's
speed has changed, and all that is known is scaled at once; when a third of all are, large batches and small ones are
not in the proportion that was thought, and they are believed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

__all__ = ["CPU_PRIOR", "GPU_PRIOR", "SLOT_PRIOR", "Coefficients", "CostModel"]

log = logging.getLogger("headrace.cost")

Coefficients = tuple[float, float, float]
"""Seconds for a batch, for each of its jobs, and for each of their tokens."""

CPU_PRIOR: Final[Coefficients] = (2e-3, 50e-6, 50e-6)
"""A small encoder on one core."""
GPU_PRIOR: Final[Coefficients] = (2e-3, 20e-6, 1e-6)
SLOT_PRIOR: Final[Coefficients] = (50e-3, 0.0, 10e-3)
"""One job at a time, token by token."""

_FORGET: Final = 0.95
"""What a batch weighs less with each that follows: about the last twenty count."""
_RIDGE: Final = 0.02
"""What the prior weighs, in batches. It decides only what batches do not tell apart."""
_FAR: Final = 1.4
"""From what factor on a batch is a surprise."""
_MOVE: Final = 0.06
"""How much one surprise may move the prediction for its own size, as a part of it."""
_IN_A_ROW: Final = 4
"""How many surprises to the same side mean that the speed has changed."""
_SURPRISES_WEIGHT: Final = 0.1
_USUAL_SURPRISES: Final = 0.3
"""If more than this part of the last batches were surprises, it is the model that is wrong: then all are believed."""
_FORGET_WRONG: Final = 0.8
_ANY: Final = 100.0
_ERROR_WEIGHT: Final = 0.1
_LEAST_S: Final = 1e-6
_MOST_S: Final = 1e6
_LEAST_PART: Final = 0.3
"""What part of a usual batch's seconds each coefficient may well be, however little the prior says."""
_USUAL: Final = (1.0, 16.0, 512.0)

_Upper = list[float]
"""A symmetric 3 × 3 matrix: 00, 01, 02, 11, 12, 22."""


class CostModel:
    """Predicts and learns what a batch takes of one replica. Not for several threads at once.

    For an engine that generates, a batch is one job, and the seconds are those of one slot.

    Args:
        prior: what is believed before the first batch; of that one, only the proportions are kept.
    """

    def __init__(self, prior: Sequence[float] = CPU_PRIOR) -> None:
        self._prior: list[float] = list(prior)
        self._ridge = _ridge_of(prior)
        self._information: _Upper = [0.0] * 6
        self._moment = [0.0] * 3
        self._coefficients: list[float] = list(prior)
        self._streak: list[float] = []
        self._surprises = 0.0
        self.measured = 0
        """How many batches it has learned from."""
        self.error = 0.0
        """The mean relative error of recent predictions: the difference by the larger of both, 0 to 1."""

    @property
    def coefficients(self) -> Coefficients:
        """The present estimate; none is negative."""
        batch, job, token = self._coefficients
        return batch, job, token

    def predict_s(self, jobs: float, tokens: float) -> float:
        """How many seconds of one replica a batch takes."""
        batch, job, token = self._coefficients
        return max(_LEAST_S, batch + job * jobs + token * tokens)

    def learn(self, jobs: float, tokens: float, run_s: float) -> None:
        """A batch took so long. What cannot be true (negative, infinite, nothing in it) is left out."""
        if not (jobs > 0 and 0 <= tokens < math.inf and 0 <= run_s < math.inf):
            return
        run_s = min(max(run_s, _LEAST_S), _MOST_S)
        predicted_s = self.predict_s(jobs, tokens)
        self._note_error(predicted_s, run_s)
        self._note_surprise(run_s / predicted_s)
        self._add((1.0, float(jobs), float(tokens)), run_s)
        self.measured += 1

    def _note_error(self, predicted_s: float, run_s: float) -> None:
        if not self.measured:
            return
        error = abs(run_s - predicted_s) / max(run_s, predicted_s)
        self.error += max(_ERROR_WEIGHT, 1 / self.measured) * (error - self.error)

    def _note_surprise(self, ratio: float) -> None:
        """Count surprises to the same side; after enough of them the pool is faster, or slower, than it was."""
        if 1 / _FAR <= ratio <= _FAR or (self._streak and (ratio > 1) != (self._streak[-1] > 1)):
            self._streak.clear()
        surprise = not 1 / _FAR <= ratio <= _FAR
        self._surprises += _SURPRISES_WEIGHT * (surprise - self._surprises)
        if surprise:
            self._streak.append(ratio)
        if self._streak and len(self._streak) >= min(self.measured, _IN_A_ROW):
            self._scale(sorted(self._streak)[len(self._streak) // 2])
            self._streak.clear()

    def _scale(self, factor: float) -> None:
        """Everything takes `factor` times as long as it was known to. Relative errors stay what they were."""
        usual_s = sum(p * u for p, u in zip(self._prior, _USUAL, strict=True))
        factor = min(max(factor, 1e-9 / usual_s), 1e9 / usual_s)
        self._prior = [factor * value for value in self._prior]
        self._ridge = _ridge_of(self._prior)
        self._coefficients = [factor * value for value in self._coefficients]
        self._information = [value / factor**2 for value in self._information]
        self._moment = [value / factor for value in self._moment]

    def _add(self, size: Coefficients, run_s: float) -> None:
        predicted_s = self.predict_s(size[1], size[2])
        forget = _FORGET_WRONG if self._surprises > _USUAL_SURPRISES else _FORGET
        known = self._with_ridge([forget * value for value in self._information])
        limit = self._limit(known, [value / predicted_s for value in size])
        run_s = min(max(run_s, predicted_s / limit), predicted_s * limit)
        scale_s = max(predicted_s, run_s)
        row = [value / scale_s for value in size]
        self._information = [forget * a + b for a, b in zip(self._information, _outer(row), strict=True)]
        self._moment = [forget * m + value * run_s / scale_s for m, value in zip(self._moment, row, strict=True)]
        self._solve()

    def _limit(self, known: _Upper, row: Sequence[float]) -> float:
        """By what factor a batch may be off at most: little where it would be believed at once."""
        if self._surprises > _USUAL_SURPRISES:
            return _ANY
        leverage = _quadratic(_inverse(known), row)
        leverage /= 1 + leverage
        return 1 + min(_FAR - 1, _MOVE / leverage) if leverage > 0 else _FAR

    def _with_ridge(self, information: Sequence[float]) -> _Upper:
        a, b, c, d, e, f = information
        return [a + self._ridge[0], b, c, d + self._ridge[1], e, f + self._ridge[2]]

    def _solve(self) -> None:
        """The least squares, none of them negative."""
        known = self._with_ridge(self._information)
        moment = [m + r * p for m, r, p in zip(self._moment, self._ridge, self._prior, strict=True)]
        self._coefficients = _non_negative(known, moment)

    def to_state(self) -> dict[str, Any]:
        """All that it knows, as what JSON can hold: thirteen numbers and a count."""
        return {
            "prior": [*self._prior],
            "information": [*self._information],
            "moment": [*self._moment],
            "error": self.error,
            "measured": self.measured,
        }

    @classmethod
    def from_state(cls, state: object, prior: Sequence[float] = CPU_PRIOR) -> Self:
        """What `to_state` gave; what cannot be that is warned of, and the prior is taken."""
        try:
            return cls._restored(state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            log.warning("the state of a cost model is unusable, the prior is taken: %r", error)
            return cls(prior)

    @classmethod
    def _restored(cls, state: object) -> Self:
        if not isinstance(state, Mapping):
            raise TypeError("not a map")
        model = cls(_numbers(state["prior"], 3))
        model._information = _numbers(state["information"], 6)
        model._moment = _numbers(state["moment"], 3)
        model.error = min(1.0, *_numbers([state["error"]], 1))
        model.measured = int(state["measured"])
        model._check()
        if model.measured:
            model._solve()
            model._check()
        return model

    def _check(self) -> None:
        """Raise ValueError unless all this can come from batches."""
        if not 0 <= self.measured < 1 << 53:
            raise ValueError("not a count of batches")
        if not 1e-15 <= sum(c * u for c, u in zip(self._coefficients, _USUAL, strict=True)) <= 1e12:
            raise ValueError("no batch takes so long, or so little")
        a, b, c, d, e, f = self._information
        if b * b > _SLACK * a * d or c * c > _SLACK * a * f or e * e > _SLACK * d * f:
            raise ValueError("not a sum of squares")


_SLACK: Final = 1 + 1e-6


def _numbers(values: Any, count: int) -> list[float]:
    """So many finite numbers, none of them negative: sums of products of sizes and seconds are nothing else."""
    if not isinstance(values, list):
        raise TypeError("not a list")
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(0 <= number < math.inf for number in numbers):
        raise ValueError(f"not {count} finite numbers")
    return numbers


def _ridge_of(prior: Sequence[float]) -> list[float]:
    """For each coefficient, how much is known of it without any batch."""
    usual_s = sum(p * u for p, u in zip(prior, _USUAL, strict=True))
    widths = (max(p, _LEAST_PART * usual_s / u) for p, u in zip(prior, _USUAL, strict=True))
    return [_RIDGE / max(width, 1e-150) ** 2 for width in widths]


def _outer(row: Sequence[float]) -> _Upper:
    a, b, c = row
    return [a * a, a * b, a * c, b * b, b * c, c * c]


def _quadratic(matrix: _Upper, row: Sequence[float]) -> float:
    a, b, c = row
    m = matrix
    return a * a * m[0] + b * b * m[3] + c * c * m[5] + 2 * (a * b * m[1] + a * c * m[2] + b * c * m[4])


def _inverse(matrix: _Upper) -> _Upper:
    """By way of the matrix whose diagonal is 1, and a hair more: sizes in a fixed proportion make it singular."""
    x, y, z = (1 / math.sqrt(matrix[place]) for place in (0, 3, 5))
    b, c, e = matrix[1] * x * y, matrix[2] * x * z, matrix[4] * y * z
    a = 1 + _HAIR
    whole = a * (a * a - e * e) - b * (a * b - c * e) + c * (b * e - a * c)
    parts = (a * a - e * e, c * e - a * b, b * e - a * c, a * a - c * c, b * c - a * e, a * a - b * b)
    scales = (x * x, x * y, x * z, y * y, y * z, z * z)
    return [part / whole * scale for part, scale in zip(parts, scales, strict=True)]


_HAIR: Final = 1e-9
_SQUARE: Final = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def _non_negative(matrix: _Upper, moment: Sequence[float]) -> list[float]:
    """The least of xᵀMx/2 − mᵀx with no x negative (NNLS, Lawson & Hanson 1974), for three unknowns.

    Coordinate descent from the unbounded solution: a positive definite M has one least, and each step goes down.
    """
    inverse = _inverse(matrix)
    x = [sum(inverse[i] * m for i, m in zip(row, moment, strict=True)) for row in _SQUARE]
    if min(x) >= 0:
        return x
    x = [max(0.0, value) for value in x]
    for _ in range(100):
        before = list(x)
        for i, row in enumerate(_SQUARE):
            others = sum(matrix[row[j]] * x[j] for j in range(3) if j != i)
            x[i] = max(0.0, (moment[i] - others) / matrix[row[i]])
        if all(abs(a - b) <= 1e-9 * b for a, b in zip(before, x, strict=True)):
            break
    return x
