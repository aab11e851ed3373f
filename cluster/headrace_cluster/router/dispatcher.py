"""Sending batches to replicas, and seeing to every job of them: answered, late, back in the queue, or suspected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from headrace.errors import DecodeError
from headrace.messages import Batch, BatchOutcome, Fate, JobOutcomes
from headrace.server.clock import ServerClock
from headrace.telemetry.structured_logs import about
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_cluster.pools.port import BatchFailedError, ReplicaLostError
from headrace_cluster.pools.replica_calls import ReplicaCalls
from headrace_cluster.router.ender import Ender
from headrace_cluster.router.flight import Flight, Race
from headrace_cluster.router.held_jobs import HeldJobs
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.scheduling.routing import RouterCounts
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.scheduling.stragglers import BatchOut
from headrace_cluster.scheduling.token_estimate import TokenEstimate
from headrace_cluster.slots.ledger import Slot

__all__ = ["Dispatcher"]

log = logging.getLogger("headrace.router")

_LOST = (ReplicaLostError, BatchFailedError, TimeoutError, DecodeError)


class Dispatcher:
    """Sends the batches of one model, and hears what became of them.

    Args:
        model: its name.
        scheduler: which chose the batches and their slots, and is told of their ends.
        calls: of the replicas.
        clock: the server's.
        held: jobs that have ended are let go from here.
        counts: what is done is counted here.
        estimate: learns what jobs were.
        ender: answers those that are convicted.
        watch: records what passes through.
        spawn: starts a task.
        blame: has the next router know of a job that failed alone.
        changed: is told when there may be something to send, or to read.
    """

    def __init__(
        self,
        model: str,
        scheduler: Scheduler,
        calls: ReplicaCalls,
        clock: ServerClock,
        *,
        held: HeldJobs,
        counts: RouterCounts,
        estimate: TokenEstimate,
        ender: Ender,
        watch: RouterWatch,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        blame: Callable[[WaitingJob], Coroutine[Any, Any, None]],
        changed: Callable[[], None],
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._calls = calls
        self._clock = clock
        self._held = held
        self._counts = counts
        self._estimate = estimate
        self._ender = ender
        self._watch = watch
        self._spawn = spawn
        self._blame = blame
        self._changed = changed
        self._races: dict[int, Race] = {}

    def _message(self, jobs: Sequence[WaitingJob], slot: Slot) -> bytes:
        self._counts.batches += 1
        self._counts.dispatched += len(jobs)
        now_ms = self._clock.now_ms()
        self._watch.dispatched(jobs, slot.replica, now_ms)
        return Batch(self._model, now_ms, [job.key for job in jobs], slot.alone).to_bytes()

    # -- batches that end as one --------------------------------------------------------------------------

    async def run(self, jobs: list[WaitingJob], slot: Slot, race: Race | None = None) -> None:
        """Send a batch to its replica, and see to every job of it."""
        race = self._races[slot.number] = race or Race(jobs)
        race.out += 1
        try:
            outcome = _outcome_of(len(jobs), await self._calls.run(slot, self._message(jobs, slot)))
        except _LOST as error:
            known = about(model=self._model, batch_jobs=len(jobs), replica=slot.replica)
            log.warning("batch of %d jobs of %s at %s: %r", len(jobs), self._model, slot.replica, error, extra=known)
            race.out -= 1
            self._lost(race, slot, error)
        else:
            race.out -= 1
            self._came_back(race, jobs, slot, outcome)
        finally:
            del self._races[slot.number]
        self._changed()

    def hedge(self, late: BatchOut, slot: Slot) -> None:
        """Have the jobs of a batch that is late run in another slot as well. Whichever is first has answered."""
        race = self._races.get(late.slot.number) or Race(late.jobs)
        log.warning("%d jobs at %s are late; they run at %s as well", len(race.left), late.slot.replica, slot.replica)
        self._counts.hedged += 1
        self._spawn(self.run(race.left, slot, race))

    def _came_back(self, race: Race, jobs: Sequence[WaitingJob], slot: Slot, outcome: BatchOutcome) -> None:
        now_s = self._clock.now_s()
        if all(fate == Fate.RETURNED for fate in outcome.fates):
            self._scheduler.refused(self._given_back(race), slot, now_s)
            return
        self._scheduler.came_back(slot, now_s)
        self._learn(jobs, slot, outcome)
        self._watch.came_back(slot.replica, outcome.tokens, outcome.run_s)
        self._settle(race, jobs, outcome.fates)

    def _given_back(self, race: Race) -> list[WaitingJob]:
        """The jobs that are the router's again: none, as long as another replica has them."""
        jobs = [] if race.out else race.left
        self._counts.returned += len(jobs)
        return jobs

    def _lost(self, race: Race, slot: Slot, failure: Exception) -> None:
        """A batch did not come back. What another replica has, or has answered, is no business of this one any more."""
        if race.left and not race.out:
            self._failed(race.left, slot, failure)
        else:
            self._scheduler.given_up(slot, self._clock.now_s(), died=_died(failure))
            self._counts.replica_deaths = self._scheduler.deaths

    def _learn(self, jobs: Sequence[WaitingJob], slot: Slot, outcome: BatchOutcome) -> None:
        ran = [(job.bytes, tokens) for job, tokens in zip(jobs, outcome.tokens, strict=True) if tokens]
        tokens = sum(tokens for _, tokens in ran)
        self._estimate.learn(sum(size for size, _ in ran), tokens)
        longest = max((tokens for _, tokens in ran), default=0)
        self._scheduler.learn(slot, len(ran), tokens, outcome.run_s, longest=longest)
        self._counts.tokens += tokens
        self._counts.run_s += outcome.run_s

    def _settle(self, race: Race, jobs: Sequence[WaitingJob], fates: Sequence[int]) -> None:
        for job, fate in zip(jobs, fates, strict=True):
            if fate != Fate.RETURNED:
                race.settle(job)
                self._end(job, fate)
            elif not race.out and race.settle(job):
                self._return(job)

    def _return(self, job: WaitingJob) -> None:
        self._counts.returned += 1
        self._scheduler.former.add(job)

    def _end(self, job: WaitingJob, fate: int) -> None:
        self._counts.answered += fate == Fate.ANSWERED
        self._counts.late += fate == Fate.LATE
        self._counts.delayed += fate == Fate.DELAYED
        self._held.let_go(job)

    # -- batches whose jobs end one by one ----------------------------------------------------------------

    async def stream(self, jobs: list[WaitingJob], slot: Slot) -> None:
        """The same where jobs end one by one, each of which makes room for another at once."""
        flight, sent_s = Flight(jobs), self._clock.now_s()
        try:
            async with aclosing(self._calls.stream(slot, self._message(jobs, slot))) as messages:
                async for message in messages:
                    self._heard(flight, slot, JobOutcomes.from_bytes(message), sent_s)
            if flight.left:
                raise BatchFailedError(f"replica {slot.replica} said nothing of {len(flight.left)} jobs")
            self._watch.streamed(slot.replica, len(jobs))
        except _LOST as error:
            known = about(model=self._model, batch_jobs=len(flight.left), replica=slot.replica)
            log.warning("%d jobs of %s at %s: %r", len(flight.left), self._model, slot.replica, error, extra=known)
            if flight.left:
                self._failed(flight.left, slot, error, computed=flight.computed)
        self._changed()

    def _heard(self, flight: Flight, slot: Slot, outcomes: JobOutcomes, sent_s: float) -> None:
        """See to the jobs that ended."""
        ended = flight.take(outcomes)
        if not ended:
            return
        if flight.refused(outcomes):
            self._counts.returned += len(ended)
            self._scheduler.refused(ended, slot, self._clock.now_s())
        else:
            self._scheduler.ended(len(ended), slot, left=len(flight.left))
            took_s = self._clock.now_s() - sent_s
            for job, tokens, fate in zip(ended, outcomes.tokens, outcomes.fates, strict=True):
                self._learn_of(job, slot, tokens, took_s)
                self._watch.ended(slot.replica, tokens)
                if fate == Fate.RETURNED:
                    self._return(job)
                else:
                    self._end(job, fate)
        self._changed()

    def _learn_of(self, job: WaitingJob, slot: Slot, tokens: int, took_s: float) -> None:
        """What a job took that was charged for by a guess, and how long it had its slot."""
        if tokens:
            self._scheduler.former.settle(job, tokens)
            self._scheduler.learn(slot, 1, tokens, took_s)
            self._estimate.learn(job.bytes, tokens)
            self._counts.tokens += tokens

    # -- failures -----------------------------------------------------------------------------------------

    def _failed(self, jobs: list[WaitingJob], slot: Slot, failure: Exception, *, computed: bool = False) -> None:
        """Have it found out which job it was, unless the batch never reached the replica."""
        now_s = self._clock.now_s()
        self._counts.returned += len(jobs)
        if isinstance(failure, ReplicaLostError) and not failure.reached:
            self._scheduler.not_sent(jobs, slot, now_s)
            return
        died = _died(failure)
        convicted = self._scheduler.failed(jobs, slot, now_s, died=died, computed=computed)
        self._counts.replica_deaths = self._scheduler.deaths
        if convicted is not None:
            self._ender.convict(convicted, failure, died=died)
        elif jobs[0].lone_failures:
            self._spawn(self._blame(jobs[0]))


def _died(failure: Exception) -> bool:
    """Whether a replica ended with a batch; one that was never reached did not."""
    return isinstance(failure, TimeoutError) or (isinstance(failure, ReplicaLostError) and failure.reached)


def _outcome_of(jobs: int, reply: bytes) -> BatchOutcome:
    outcome = BatchOutcome.from_bytes(reply)
    for of_jobs in (outcome.fates, outcome.tokens):
        if not isinstance(of_jobs, list) or len(of_jobs) != jobs:
            raise DecodeError(f"not the outcome of a batch of {jobs} jobs")
    return outcome
