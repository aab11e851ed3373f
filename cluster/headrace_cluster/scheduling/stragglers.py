"""Batches that are out, when each should be back, and which of them are late.

A replica that is late gets nothing new until it answers, and its batch is sent to another one as well ("hedged
requests", Dean & Barroso 2013, "The tail at scale"): whichever answers first has answered. Nobody is late by what was
only guessed, nor for time in which nobody looked: this process was stopped then, or Redis was away, or a clock jumped.

Pure: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.slots.ledger import Slot

__all__ = ["BatchOut", "BatchesOut"]

_TIMES: Final = 3.0
"""By how many times its predicted seconds a batch must be late."""
_FLOOR_S: Final = 1.0
"""And by how much at least."""
_UNSEEN_S: Final = 0.75
"""A longer time between two looks counts for nobody."""


@dataclass(slots=True, eq=False)
class BatchOut:
    """One batch at one replica."""

    slot: Slot
    jobs: Sequence[WaitingJob]
    run_s: float
    """How long it should take once it is its turn."""
    due_s: float
    """When it should be back."""
    measured: bool
    """Whether that rests on measurements."""
    hedgeable: bool = True
    """Whether another replica may run the same jobs meanwhile."""
    late: bool = field(default=False, init=False)
    hedged: bool = field(default=False, init=False)

    def is_late(self, now_s: float) -> bool:
        """Whether it should have been back long ago."""
        return self.measured and now_s > self.due_s + max(_TIMES * self.run_s, _FLOOR_S)


class BatchesOut:
    """All batches of one model that are out, by the numbers of their slots."""

    def __init__(self) -> None:
        self._batches: dict[int, BatchOut] = {}
        self._of_replica: dict[str, list[BatchOut]] = {}
        self._looked_s: float | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[BatchOut]:
        return iter(self._batches.values())

    def free_s(self, replica: str, now_s: float) -> float:
        """When a replica should be done with all that it has."""
        return max((batch.due_s for batch in self._of_replica.get(replica, ())), default=now_s)

    def first_back_s(self, pool: str, now_s: float) -> float | None:
        """When the first replica of a pool should be done with all that it has; None if none has anything in time."""
        times = [
            max(batch.due_s for batch in batches)
            for batches in self._of_replica.values()
            if batches[0].slot.pool == pool and not any(batch.late for batch in batches)
        ]
        return max(now_s, min(times)) if times else None

    def add(self, batch: BatchOut) -> None:
        """A batch was sent."""
        self._batches[batch.slot.number] = batch
        self._of_replica.setdefault(batch.slot.replica, []).append(batch)

    def remove(self, slot: Slot, now_s: float | None = None) -> None:
        """A batch is not out any more. Those behind it have their turn now, if the time is given."""
        batch = self._batches.pop(slot.number, None)
        if batch is None:
            return
        others = self._of_replica[slot.replica]
        others.remove(batch)
        if not others:
            del self._of_replica[slot.replica]
        if now_s is not None:
            for other in others:
                now_s += other.run_s
                other.due_s = now_s

    def look(self, now_s: float) -> list[BatchOut]:
        """Those that are late since this look."""
        unseen_s = now_s - self._looked_s if self._looked_s is not None else 0.0
        self._looked_s = now_s
        if not 0 <= unseen_s <= _UNSEEN_S:
            for batch in self:
                batch.due_s += unseen_s
        late = [batch for batch in self if not batch.late and batch.is_late(now_s)]
        for batch in late:
            batch.late = True
        return late

    def to_hedge(self) -> Iterator[BatchOut]:
        """Those that are late, and run nowhere else yet."""
        return (batch for batch in self if batch.late and batch.hedgeable and not batch.hedged)
