"""Taking jobs in: from lanes, as far as there is credit, and from the dead. Decides and keeps count; reads nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from headrace.errors import DecodeError, FailureCode
from headrace.messages import LaneEntry
from headrace.scripts import Reaped
from headrace.server.clock import ServerClock
from headrace_cluster.router.ender import Ender
from headrace_cluster.router.generation import GenerationFence
from headrace_cluster.router.held_jobs import HeldJobs
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.scheduling.credit import CreditPolicy, entries_to_read
from headrace_cluster.scheduling.routing import RouterCounts
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.scheduling.token_estimate import TokenEstimate

__all__ = ["Intake"]

log = logging.getLogger("headrace.router")

_SUSPECT_FROM: Final = 3
"""From how many deliveries on a job is suspected of killing routers, and runs alone."""


class Intake:
    """How jobs come to one router.

    Args:
        model: whose jobs.
        credit: the bounds of what it holds.
        scheduler: gets jobs that are to run.
        clock: the server's.
        fence: says whether its generation reads.
        held: jobs are taken in here.
        counts: what is taken is counted here.
        estimate: of what a job is.
        ender: answers those that are not to run.
        woken: is told when there may be something to send.
    """

    def __init__(
        self,
        model: str,
        credit: CreditPolicy,
        scheduler: Scheduler,
        clock: ServerClock,
        fence: GenerationFence,
        *,
        held: HeldJobs,
        counts: RouterCounts,
        estimate: TokenEstimate,
        ender: Ender,
        woken: Callable[[], None],
    ) -> None:
        self._model = model
        self._credit = credit
        self._scheduler = scheduler
        self._clock = clock
        self._fence = fence
        self._held = held
        self._counts = counts
        self._estimate = estimate
        self._ender = ender
        self._woken = woken
        self._full = [False, False, False]
        """Of which priorities nothing more was to be read when it was last asked."""

    # -- from lanes -------------------------------------------------------------------------------------

    def credit(self, priority: int, active: int) -> int:
        """How many entries of each of its lanes may be read of a priority now.

        Args:
            priority: whose lanes.
            active: how many of them had entries at the last read.
        """
        if not self._fence.leads:
            return 0
        slots = self._scheduler.slots
        count = entries_to_read(
            self._credit,
            free_slots=slots.free(self._clock.now_s()) if self._scheduler.breaker.closed else 0,
            replicas=slots.ahead,
            waiting=self._scheduler.former.waiting_of(priority),
            active=active,
            held_bytes=self._held.bytes,
            mean_bytes=self._held.mean_bytes,
        )
        self._full[priority] = count == 0
        self._scheduler.choice.more_waits = slots.replicas > 0 and any(self._full)
        return count

    def take(self, entries: Sequence[LaneEntry]) -> None:
        """Hold what was read, unless it is held already."""
        self._scheduler.former.note_arrivals(len(entries), self._clock.now_s())
        for entry in entries:
            if entry not in self._held and (job := self._hold(entry)) is not None:
                self._scheduler.former.add(job)
        self._woken()

    def _hold(self, entry: LaneEntry) -> WaitingJob | None:
        """The job of an entry that is to run. One that is not understood is left alone, or answered."""
        self._counts.read += 1
        try:
            envelope = entry.envelope
        except DecodeError as error:
            log.error("left alone in lane %d of %s: %s", entry.lane, self._model, error)
            return None
        job = self._held.add(entry, envelope, self._estimate.tokens(len(entry.payload)))
        if job.deadline_s is not None:
            self._scheduler.costs.note_slack(job.deadline_s - job.submitted_s)
        if envelope.supported:
            return job
        self._ender.refuse(
            job,
            FailureCode.UNSUPPORTED_VERSION,
            f"the job is of wire version {envelope.version}, which this service does not know",
            hint="upgrade the service, or submit with an older client",
        )
        return None

    # -- from the dead, and back --------------------------------------------------------------------------

    def room_to_take_over(self) -> int:
        """How many jobs of dead routers may be taken: they go before what waits in lanes, as memory allows."""
        if self._scheduler.slots.replicas == 0 or not self._fence.leads:
            return 0
        return int((self._credit.max_held_bytes - self._held.bytes) / max(1.0, self._held.mean_bytes))

    def take_over(self, reaped: Sequence[Reaped]) -> None:
        """Hold what dead routers held. What they are suspected of having died of runs alone."""
        for row in reaped:
            try:
                entry = LaneEntry.read(row.lane, row.entry_id, row.fields)
            except DecodeError as error:
                log.error("left alone in lane %d of %s: %s", row.lane, self._model, error)
                continue
            if entry in self._held or (job := self._hold(entry)) is None:
                continue
            self._counts.reaped += 1
            job.taken_over = True
            self._place(job, row)
        self._woken()

    def _place(self, job: WaitingJob, row: Reaped) -> None:
        if row.cancelling:
            self._ender.cancel([job])
        elif row.lone_failures or row.deliveries >= _SUSPECT_FROM:
            job.lone_failures = row.lone_failures
            self._scheduler.quarantine.add([job])
        else:
            self._scheduler.former.add(job)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End those that have not been dispatched; the others' answers may come first."""
        self._ender.cancel(self._scheduler.discard(self._held.named(job_ids)))

    def forget(self) -> None:
        """Let go of what was not dispatched. Suspects stay: what is known of them is known only here."""
        for job in self._scheduler.former.clear():
            self._held.let_go(job)

    def let_go(self) -> None:
        """Let go of all that was not dispatched: another generation reads."""
        for job in self._scheduler.discard(list(self._held)):
            self._held.let_go(job)
