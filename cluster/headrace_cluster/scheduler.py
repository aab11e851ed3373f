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
        jobs_per_replica: how many jobs it holds at once, where they end one by one; 0: they end with their batch.
        lone_failures: after how many failures alone a job is convicted.
    """

    def __init__(
        self,
        forming: FormingPolicy,
        *,
        batches_per_replica: int = 2,
        jobs_per_replica: int = 0,
        lone_failures: int = 2,
    ) -> None:
        self.former = BatchFormer(forming)
        self.slots = SlotLedger(per_replica=jobs_per_replica or batches_per_replica)
        self._one_by_one = jobs_per_replica > 0
        self.quarantine = Quarantine(lone_failures=lone_failures)
        self.breaker = Breaker()
        self._suspects_went_last = False

    def next_batch(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        """The next batch and its slot, which is taken with this; None if nothing is to be sent now."""
        if not self.breaker.allows(now_s, in_flight=self.slots.in_flight):
            return None
        chosen = self._next_suspects(now_s) or self._next_formed(now_s)
        if chosen is not None:
            self.slots.take(chosen[1], self._places(chosen[0]))
        return chosen

    def _places(self, jobs: Sequence[WaitingJob]) -> int:
        """How many slots jobs take that go together."""
        return len(jobs) if self._one_by_one else 1

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
        ready_s = self._ready_at(now_s, slot) if slot is not None else None
        if slot is None or ready_s is None or ready_s > now_s:
            return None
        self._suspects_went_last = False
        return self.former.form(now_s, max_jobs=self.slots.room(slot) if self._one_by_one else None), slot

    def _ready_at(self, now_s: float, slot: Slot) -> float | None:
        """When jobs may go there. One that joins others while they run need not wait until it fills a batch."""
        return self.former.ready_at(now_s, idle=slot.idle or self._one_by_one)

    def wait_s(self, now_s: float) -> float | None:
        """How long until `next_batch` may have something without anything else having happened, if ever."""
        slot = self.slots.best(now_s)
        times = [
            self._ready_at(now_s, slot) if slot is not None else None,
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

    def ended(self, jobs: int, slot: Slot, *, left: int) -> None:
        """So many jobs of a batch ended, each by itself, and so many of it still run."""
        if not slot.alone:
            self.slots.release(slot, jobs)
        elif not left:
            self.slots.release(slot)
        self.slots.resume(slot)
        self.breaker.answered()

    def failed(
        self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float, *, died: bool, computed: bool = False
    ) -> WaitingJob | None:
        """A batch did not come back, or what is left of it, with or without its replica's death.

        Its jobs are suspected, and run again in smaller groups. Returns the one that is convicted by it, if any.
        Jobs that were being computed when their replica died are pardoned once: generating takes long, so most of
        those that a death interrupts are innocent, and to run alone would cost each of them, and all others, minutes.
        """
        alone = slot.alone or (slot.idle and self.slots.taken(slot) == self._places(jobs))
        self.slots.release(slot, self._places(jobs))
        self.slots.suspend(slot, now_s)
        if died:
            self.breaker.died(slot.replica, now_s)
        for job in jobs:
            job.attempts += 1
        suspects = self._pardon(jobs) if died and computed and not slot.alone else jobs
        if alone and len(suspects) == len(jobs):
            return self.quarantine.failed(suspects, slot.replica)
        self.quarantine.add(suspects)
        return None

    def _pardon(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """Have jobs go on in company, if this is their first interruption; returns the others."""
        suspects = [job for job in jobs if job.interrupted]
        for job in jobs:
            if not job.interrupted:
                job.interrupted = True
                self.former.add(job)
        return suspects

    def refused(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float) -> None:
        """The replica would not run these beside what it had: others' jobs, or others' suspects."""
        self.slots.release(slot, self._places(jobs))
        self.slots.suspend(slot, now_s, for_s=_BUSY_S)
        self._put_back(jobs, slot)

    def not_sent(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float) -> None:
        """A batch never reached its replica: nobody is to blame."""
        self.slots.release(slot, self._places(jobs))
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
