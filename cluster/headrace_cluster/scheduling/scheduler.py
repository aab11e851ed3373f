"""What goes where next: everything a router decides between reading a job and calling a replica.

Pure: `BatchFormer` says what goes together, `SlotLedger` where there is room, `PoolChoice` which pool is worth it,
`Quarantine` who has to run alone, `BatchesOut` who is late, `Breaker` whether anything should run at all. This class
only lets them take turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from headrace_cluster.scheduling.batch_former import BatchFormer, FormingPolicy, WaitingJob
from headrace_cluster.scheduling.breaker import Breaker
from headrace_cluster.scheduling.lost_replicas import LostReplicas
from headrace_cluster.scheduling.pool_choice import PoolChoice
from headrace_cluster.scheduling.pool_costs import PoolCosts
from headrace_cluster.scheduling.quarantine import Quarantine
from headrace_cluster.scheduling.routing import PoolFacts
from headrace_cluster.scheduling.stragglers import BatchesOut, BatchOut
from headrace_cluster.slots.ledger import Slot, SlotLedger
from headrace_cluster.slots.table import SlotTable

__all__ = ["Scheduler"]

_RUN_WEIGHT: Final = 0.1
_USUAL_PADDING: Final = 1.25
"""By what factor padding makes a batch of alike lengths larger, where there were enough jobs to choose from."""
_BUSY_S: Final = 0.1
"""How long a replica that refused a batch is left alone."""


class Scheduler:
    """The jobs of one model that wait in a router, and the slots of its replicas. Time comes in as an argument.

    Args:
        forming: what a batch may be.
        batches_per_replica: how many a replica holds at once.
        jobs_per_replica: how many jobs it holds at once, where they end one by one; 0: they end with their batch.
        lone_failures: after how many failures alone a job is convicted.
        pools: what differs between the pools, by the names that their replicas' names begin with.
        slots: who counts slots; None: a ledger of its own.
    """

    def __init__(
        self,
        forming: FormingPolicy,
        *,
        batches_per_replica: int = 2,
        jobs_per_replica: int = 0,
        lone_failures: int = 2,
        pools: Mapping[str, PoolFacts] | None = None,
        slots: SlotTable | None = None,
    ) -> None:
        self._one_by_one = jobs_per_replica > 0
        self.former = BatchFormer(forming)
        self.slots: SlotTable = slots or SlotLedger(
            per_replica=jobs_per_replica or batches_per_replica, per_pool=_capacities(pools or {}, self._one_by_one)
        )
        self.costs = PoolCosts(pools)
        self.out = BatchesOut()
        self.choice = PoolChoice(
            self.former, self.costs, self.out, one_by_one=self._one_by_one, ready_at=self._ready_at
        )
        self.quarantine = Quarantine(lone_failures=lone_failures)
        self.breaker = Breaker()
        self.deaths = 0
        """Replicas that died with batches."""
        self._lost = LostReplicas()
        self._suspects_went_last = False
        self._sent = 0

    def next_batch(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        """The next batch and its slot, which is taken with this; None if nothing is to be sent now."""
        if not self.breaker.allows(now_s, in_flight=self.slots.in_flight):
            return None
        chosen = self._next_suspects(now_s) or self._next_formed(now_s)
        if chosen is None:
            return None
        self.choice.sent()
        jobs, slot = chosen
        hedgeable = not slot.alone and not any(job.attempts for job in jobs)
        return jobs, self._send(jobs, slot, now_s, hedgeable=hedgeable)

    def _send(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float, *, hedgeable: bool) -> Slot:
        """Take the slot, and note when the batch should be back."""
        self._sent += 1
        slot = replace(slot, number=self._sent)
        pool, sizes = slot.pool, [job.tokens for job in jobs]
        tokens = self._counted(len(jobs), sum(sizes), max(sizes))
        size = (1, tokens / len(jobs)) if self._one_by_one else (len(jobs), tokens)
        run_s = self.costs.of(pool).predict_s(*size) * self.slots.slowness(slot.replica)
        begins_s = now_s if slot.idle or self._one_by_one else max(now_s, self.out.free_s(slot.replica, now_s))
        trusted = not self._one_by_one and self.slots.predictable and self.costs.trusted(pool)
        self.slots.take(slot, self._places(jobs))
        self.out.add(BatchOut(slot, jobs, run_s, begins_s + run_s, measured=trusted, hedgeable=hedgeable))
        return slot

    def _counted(self, jobs: int, tokens: int, longest: int) -> float:
        """As how many tokens a batch counts: where shorter jobs are padded, as those that so large a one usually has.

        Else a few small batches, which have much padding, would make jobs seem dear; more replicas would be started,
        whose batches are smaller still.
        """
        return jobs * longest / _USUAL_PADDING if self.former.policy.padded and longest else tokens

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
        slot, ready_s = self.choice.next_slot(self.slots, now_s)
        if slot is None or ready_s is None or ready_s > now_s:
            return None
        self._suspects_went_last = False
        return self.former.form(now_s, max_jobs=self.slots.room(slot) if self._one_by_one else None), slot

    def _ready_at(self, now_s: float, slot: Slot) -> float | None:
        """When jobs may go there. One that joins others while they run need not wait until it fills a batch."""
        return self.former.ready_at(now_s, idle=slot.idle or self._one_by_one)

    def wait_s(self, now_s: float) -> float | None:
        """How long until `next_batch` may have something without anything else having happened, if ever."""
        times = [
            self.choice.next_slot(self.slots, now_s).ready_s,
            self.slots.next_resume_s(now_s),
            self.breaker.retry_at_s(),
        ]
        later = [time_s for time_s in times if time_s is not None and time_s > now_s]
        return min(later) - now_s if later else None

    # -- what comes back ----------------------------------------------------------------------------------

    def came_back(self, slot: Slot, now_s: float | None = None) -> None:
        """A batch came back from this slot."""
        self._over(slot, now_s)
        self.slots.release(slot)
        self._answered(slot)

    def _answered(self, slot: Slot) -> None:
        self.slots.resume(slot)
        self._lost.answered(slot.replica)
        self.breaker.answered()

    def _over(self, slot: Slot, now_s: float | None = None) -> None:
        self.out.remove(slot, now_s)

    def learn(self, slot: Slot, jobs: int, tokens: int, run_s: float, *, longest: int = 0) -> None:
        """So many jobs with so many tokens together took so long there; one job where each has a slot."""
        if jobs <= 0:
            return
        counted = self._counted(jobs, tokens, longest)
        ratio = self.costs.learn(slot.pool, jobs, tokens, run_s, counted=counted)
        self.former.run_s += _RUN_WEIGHT * (self.costs.of(slot.pool).predict_s(jobs, counted) - self.former.run_s)
        if ratio is not None and not self._one_by_one:
            self.slots.learn_slowness(slot.replica, ratio)

    def ended(self, jobs: int, slot: Slot, *, left: int) -> None:
        """So many jobs of a batch ended, each by itself, and so many of it still run."""
        if not left:
            self._over(slot)
        if not slot.alone:
            self.slots.release(slot, jobs)
        elif not left:
            self.slots.release(slot)
        self._answered(slot)

    def failed(
        self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float, *, died: bool, computed: bool = False
    ) -> WaitingJob | None:
        """A batch did not come back, or what is left of it, with or without its replica's death.

        Its jobs are suspected, and run again in smaller groups. Returns the one that is convicted by it, if any.
        Jobs that were being computed when their replica died are pardoned once: generating takes long, so most of
        those that a death interrupts are innocent, and to run alone would cost each of them, and all others, minutes.
        What was sent after the death of its replica is suspected of nothing.
        """
        if died and self._lost.had_died(slot):
            self.not_sent(jobs, slot, now_s)
            return None
        alone = slot.alone or (slot.idle and self.slots.taken(slot) == self._places(jobs))
        self._over(slot, now_s)
        self.slots.release(slot, self._places(jobs))
        self.slots.suspend(slot, now_s)
        if died:
            self._died(slot, now_s)
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
        self._over(slot, now_s)
        self.slots.release(slot, self._places(jobs))
        self.slots.suspend(slot, now_s, for_s=_BUSY_S)
        self._put_back(jobs, slot)

    def not_sent(self, jobs: Sequence[WaitingJob], slot: Slot, now_s: float) -> None:
        """A batch never reached its replica: nobody is to blame."""
        self._over(slot, now_s)
        self.slots.release(slot, self._places(jobs))
        self.slots.suspend(slot, now_s)
        self._put_back(jobs, slot)

    def _put_back(self, jobs: Sequence[WaitingJob], slot: Slot) -> None:
        if slot.alone:
            self.quarantine.put_back(jobs)
            return
        for job in jobs:
            self.former.add(job)

    # -- who is late --------------------------------------------------------------------------------------

    def look_for_stragglers(self, now_s: float) -> list[BatchOut]:
        """Those that are late since the last look. Their replicas get nothing new until they answer.

        To be called about four times a second while replicas have what they need to answer.
        """
        late = self.out.look(now_s)
        for batch in late:
            self.slots.suspend(batch.slot, now_s, for_s=math.inf)
        return late

    def next_hedge(self, now_s: float) -> tuple[BatchOut, Slot] | None:
        """A batch that is late, and the slot where it is to run as well, which is taken with this."""
        if not self.breaker.closed:
            return None
        for batch in self.out.to_hedge():
            slot = self.slots.best(now_s)
            if slot is None:
                return None
            if slot.replica != batch.slot.replica:
                batch.hedged = True
                return batch, self._send(batch.jobs, slot, now_s, hedgeable=False)
        return None

    def given_up(self, slot: Slot, now_s: float, *, died: bool) -> None:
        """A batch did not come back from there, and nobody is to blame: its jobs have ended, or run elsewhere."""
        self._over(slot, now_s)
        self.slots.release(slot)
        self.slots.suspend(slot, now_s)
        if died:
            self._died(slot, now_s)

    def _died(self, slot: Slot, now_s: float) -> None:
        self.deaths += self._lost.died(slot, sent=self._sent)
        self.breaker.died(slot.replica, now_s)

    # -- jobs that shall not run --------------------------------------------------------------------------

    def discard(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """Take out jobs that shall not run any more; returns those that were waiting here."""
        return [*self.quarantine.discard(jobs), *(job for job in jobs if self.former.discard(job))]

    def expired(self, now_s: float) -> list[WaitingJob]:
        """Take out every job whose deadline has passed; under overload, also those that cannot be in time any more.

        While more waits than a router may hold, what runs and is late takes the place of what would be in time, and
        soon all of it is late. So only feasible deadlines count (Abbott and Garcia-Molina 1988, "Scheduling real-time
        transactions: a performance evaluation").
        """
        late = self.former.expired(self.choice.soonest_s(self.slots, now_s))
        return [*late, *self.quarantine.expired(now_s)]


def _capacities(pools: Mapping[str, PoolFacts], one_by_one: bool) -> dict[str, int]:
    """How many batches, or jobs, a replica may have at once, for the pools that have a number of their own."""
    numbers = {
        name: facts.jobs_per_replica if one_by_one else facts.batches_per_replica for name, facts in pools.items()
    }
    return {name: number for name, number in numbers.items() if number is not None}
