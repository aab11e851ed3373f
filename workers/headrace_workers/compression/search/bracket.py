"""Which trial comes next: successive halving, a decision without clock, disk or model.

Every candidate is tried a little, the best third of them more, and the best third of those in full. A candidate moves
up as soon as it is among the best third of those tried as long as it was (asynchronous successive halving, Li et al.,
arXiv 1810.05934), so that a search that is cut short has carried something to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace_workers.compression.search.pareto import Point, layers

__all__ = ["FIDELITIES", "Bracket", "Outcome", "Trial", "best_first"]

FIDELITIES: Final = (0.1, 0.3, 1.0)
"""Shares of training steps and of the examples that judge."""
_ETA: Final = 3
"""One of so many moves up."""


@dataclass(frozen=True)
class Trial:
    """A candidate, to be tried."""

    key: str
    rung: int
    """Which of the fidelities."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    point: Point | None
    """Named by the candidate's key; None for a candidate that failed and is out."""
    missing: float = 0.0
    """By how much the target is missed, all conditions together; 0: it is met."""
    seconds: float = 0.0
    trained: bool = True
    """Whether training took the time, which grows with fidelity then."""


def best_first(outcomes: Sequence[Outcome]) -> list[str]:
    """The keys of candidates: those nearer to the target first; among equals, those that fewer dominate."""
    points = [outcome.point for outcome in outcomes if outcome.point is not None]
    depth = {point.name: number for number, layer in enumerate(layers(points)) for point in layer}
    missing = {outcome.point.name: outcome.missing for outcome in outcomes if outcome.point is not None}
    quality = {point.name: point.quality for point in points}
    return sorted(depth, key=lambda key: (missing[key], depth[key], -quality[key]))


class Bracket:
    """Decides what is tried next.

    Args:
        keys: the candidates, the most promising first.
        known: outcomes of earlier trials, which are not repeated.
        fidelities: what the rungs are.
    """

    def __init__(
        self,
        keys: Sequence[str],
        known: Mapping[Trial, Outcome] | None = None,
        *,
        fidelities: Sequence[float] = FIDELITIES,
    ) -> None:
        self._keys = list(dict.fromkeys(keys))
        self._fidelities = fidelities
        self.outcomes: dict[Trial, Outcome] = dict(known or {})

    def next(self, left_s: float) -> Trial | None:
        """The next trial that should end in the time that is left, of the highest rung; None if there is none."""
        for trial in (*self._promotions(), *self._beginnings()):
            if self.expected_s(trial) <= left_s:
                return trial
        return None

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to try."""
        return self.next(float("inf")) is None

    def record(self, trial: Trial, outcome: Outcome) -> None:
        """Take note of what came of a trial."""
        self.outcomes[trial] = outcome

    def expected_s(self, trial: Trial) -> float:
        """What a trial should take, by the candidate's last one; 0 where it had none."""
        before = self.outcomes.get(Trial(trial.key, trial.rung - 1))
        if before is None:
            return 0.0
        growth = self._fidelities[trial.rung] / self._fidelities[trial.rung - 1] if before.trained else 1.0
        return before.seconds * growth

    def _promotions(self) -> list[Trial]:
        """Who may move up, the highest rung first; the last of a rung that nobody joins any more may in any case."""
        found: list[Trial] = []
        more_to_come = bool(self._beginnings())
        for rung in range(len(self._fidelities) - 1):
            done = [outcome for key in self._keys if (outcome := self.outcomes.get(Trial(key, rung))) is not None]
            room = max(len(done) // _ETA, 0 if more_to_come else 1)
            chosen = [Trial(key, rung + 1) for key in best_first(done)[:room]]
            moving = [trial for trial in chosen if trial not in self.outcomes]
            more_to_come = more_to_come or bool(moving)
            found = moving + found
        return found

    def _beginnings(self) -> list[Trial]:
        return [trial for key in self._keys if (trial := Trial(key, 0)) not in self.outcomes]
