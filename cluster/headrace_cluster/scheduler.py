"""What goes where next: everything a router decides between reading a job and calling a replica.

Pure: `BatchFormer` says what goes together, `SlotLedger` where there is room, `Quarantine` who has to run
alone, `Breaker` whether anything should run at all. This class only lets them take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace_cluster.batch_former import BatchFormer, FormingPolicy, WaitingJob
from headrace_cluster.breaker import Breaker
from headrace_cluster.quarantine import Quarantine
from headrace_cluster.slots import Slot, SlotLedger

__all__ = ["Scheduler"]

_BUSY_S: Final = 0.1
"""How long a replica that refused a batch is left alone."""


class Scheduler:
    """The jobs of one model that wait in a router, and the slots of its replicas. Time comes in as an argument.

    Args:
        forming: what a batch may be.
        batches_per_replica: how many a replica holds at once.
        lone_failures: after how many failures alone a job is convicted.
    """

    def __init__(self, forming: FormingPolicy, *, batches_per_replica: int = 2, lone_failures: int = 2) -> None:
        self.former = BatchFormer(forming)
        self.slots = SlotLedger(per_replica=batches_per_replica)
        self.quarantine = Quarantine(lone_failures=lone_failures)
        self.breaker = Breaker()
        self._suspects_went_last = False

    def next_batch(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        """The next batch and its slot, which is taken with this; None if nothing is to be sent now."""
        if not self.breaker.allows(now_s, in_flight=self.slots.in_flight):
            return None
        chosen = self._next_suspects(now_s) or self._next_formed(now_s)
        if chosen is not None:
            self.slots.take(chosen[1])
        return chosen

    def _next_suspects(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        """A group of suspects, once a whole replica is theirs; in turn with other work."""
        if not len(self.quarantine):
            self.slots.unreserve()
            return None
        if self._suspects_went_last and len(self.former):
            return None
        slot = self.slots.reserve(now_s, shunned=self.quarantine.shunned)
        if slot is None:
            return None
        self._suspects_went_last = True
        return self.quarantine.take(), slot

    def _next_formed(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        slot = self.slots.best(now_s)
        ready_s = self.former.ready_at(now_s, idle=slot.idle) if slot is not None else None
        if slot is None or ready_s is None or ready_s > now_s:
            return None
        self._suspects_went_last = False
        return self.former.form(now_s), slot

    def wait_s(self, now_s: float) -> float | None:
        """How long until `next_batch` may have something without anything else having happened, if ever."""
        slot = self.slots.best(now_s)
        times = [
            self.former.ready_at(now_s, idle=slot.idle) if slot is not None else None,
            self.slots.next_resume_s(now_s),
            self.breaker.retry_at_s(),
        ]
        later = [time_s for time_s in times if time_s is not None and time_s > now_s]
        return min(later) - now_s if later else None

    def came_back(self, slot: Slot) -> None:
        """A batch came back from this slot."""
        self.slots.release(slot)
        self.slots.resume(slot)
        self.breaker.answered()

    def failed(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float, *, died: bool) -> WaitingJob | None:
        """A batch did not come back, with or without its replica's death.

        Its jobs are suspected, and run again in smaller groups. Returns the one that is convicted by it, if any.
        """
        alone = slot.alone or (slot.idle and self.slots.taken(slot) == 1)
        self.slots.release(slot)
        self.slots.suspend(slot, now_s)
        if died:
            self.breaker.died(slot.replica, now_s)
        for job in jobs:
            job.attempts += 1
        if alone:
            return self.quarantine.failed(jobs, slot.replica)
        self.quarantine.add(jobs)
        return None

    def refused(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float) -> None:
        """The replica would not run these beside what it had: others' jobs, or others' suspects."""
        self.slots.release(slot)
        self.slots.suspend(slot, now_s, for_s=_BUSY_S)
        self._put_back(jobs, slot)

    def not_sent(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float) -> None:
        """A batch never reached its replica: nobody is to blame."""
        self.slots.release(slot)
        self.slots.suspend(slot, now_s)
        self._put_back(jobs, slot)

    def _put_back(self, jobs: Sequence[WaitingJob], slot: Slot) -> None:
        if slot.alone:
            self.quarantine.put_back(jobs)
            return
        for job in jobs:
            self.former.add(job)

    def discard(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """Take out jobs that shall not run any more; returns those that were waiting here."""
        return [*self.quarantine.discard(jobs), *(job for job in jobs if self.former.discard(job))]

    def expired(self, now_s: float) -> list[WaitingJob]:
        """Take out every job whose deadline has passed."""
        return [*self.former.expired(now_s), *self.quarantine.expired(now_s)]
