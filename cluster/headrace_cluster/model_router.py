"""The router of one model: lanes in, batches out. The thin shell around the pure classes.

Four things happen, each in a task of its own: the reader takes what there is credit for; the dispatcher
forms a batch whenever a slot is free and the former says it is time; each batch that is out is awaited, as a whole
or job by job; and `Upkeep` takes over what dead routers left. What the router holds is known to Redis as pending
with its consumer, so nothing here needs to be saved.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

from headrace import scripts
from headrace.connection import commands
from headrace.errors import DecodeError, FailureCode, RedisError
from headrace.keys import keys_of
from headrace.messages import Batch, BatchOutcome, Fate, JobOutcomes, LaneEntry
from headrace.registry import register
from headrace.scripts import Reaped
from headrace.server_clock import ServerClock
from headrace.tasks import end_task
from headrace_cluster.batch_former import WaitingJob
from headrace_cluster.credit import CreditPolicy, Reading, plan_reading
from headrace_cluster.ender import Ender
from headrace_cluster.flight import Flight
from headrace_cluster.held_jobs import HeldJobs
from headrace_cluster.lane_reader import LaneReader
from headrace_cluster.pool_port import BatchFailedError, PoolPort, ReplicaLostError
from headrace_cluster.replica_calls import ReplicaCalls
from headrace_cluster.routing import RouterCounts, RoutingPolicy
from headrace_cluster.scheduler import Scheduler
from headrace_cluster.slots import Slot
from headrace_cluster.token_estimate import TokenEstimate
from headrace_cluster.upkeep import Leaseholder, Upkeep

__all__ = ["ModelRouter"]

log = logging.getLogger("headrace.router")

_EXPIRE_EVERY_S: Final = 0.25
_SUSPECT_FROM: Final = 3
"""From how many deliveries on a job is suspected of killing routers, and runs alone."""
_LEAST_AHEAD: Final = 8
"""How many jobs are read ahead at least: among fewer there would be little to choose from."""
_GIVE_BACK_S: Final = 2.0
"""How long a router that ends tries to give back what it holds."""


def _outcome_of(jobs: int, reply: bytes) -> BatchOutcome:
    outcome = BatchOutcome.from_bytes(reply)
    for of_jobs in (outcome.fates, outcome.tokens):
        if not isinstance(of_jobs, list) or len(of_jobs) != jobs:
            raise DecodeError(f"not the outcome of a batch of {jobs} jobs")
    return outcome


def _credit_of(policy: RoutingPolicy) -> CreditPolicy:
    """A slot takes a batch, and another is read ahead; where it takes a job, what is read ahead is half a replica's."""
    if not policy.jobs_per_replica:
        return CreditPolicy(batch_jobs=policy.forming.max_jobs)
    return CreditPolicy(batch_jobs=max(_LEAST_AHEAD, policy.jobs_per_replica // 2), slot_jobs=1)


class ModelRouter:
    """Routes one model's jobs from its lanes to its pool.

    Args:
        model: the name under which producers know it.
        url: the Redis server.
        pool: where batches go.
        policy: how.
        lease: of this router's consumer, whose name is fresh for each of its lives.
    """

    def __init__(self, model: str, url: str, *, pool: PoolPort, policy: RoutingPolicy, lease: Leaseholder) -> None:
        self.model = model
        self.policy = policy
        self.counts = RouterCounts()
        self.scheduler = Scheduler(
            policy.forming,
            batches_per_replica=policy.batches_per_replica,
            jobs_per_replica=policy.jobs_per_replica,
            lone_failures=policy.lone_failures,
        )
        self.held = HeldJobs()
        self.estimate = TokenEstimate()
        self._credit = _credit_of(policy)
        self._clock = ServerClock(keys_of(model).prefix)
        self._redis = commands(url)
        self._redis_once = commands(url, retries=0)
        self._pool = pool
        self._calls = ReplicaCalls(
            model,
            pool,
            timeout_s=policy.call_timeout_s,
            look=lambda: self._clock.look(self._redis),
            suspend=lambda slot, for_s: self.scheduler.slots.suspend(slot, self._clock.now_s(), for_s=for_s),
        )
        self._send = self._dispatch_streamed if policy.jobs_per_replica else self._dispatch
        self._ender = Ender(model, self._redis, self.counts, spawn=self._spawn, let_go=self._let_go)
        self._lease = lease
        self._upkeep = Upkeep(
            model,
            self._redis_once,
            lease,
            self._clock,
            room=self._room_to_take_over,
            take_over=self._take_over,
            look_again=lambda: self._reader.adopt_again(),
            cancel=self._cancel,
        )
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: asyncio.Future[None] | None = None
        self._reader = LaneReader(
            url,
            model,
            consumer=lease.consumer,
            plan=self._plan_reading,
            take=self._take,
            restore=self._register,
            block_ms=policy.block_ms,
        )

    async def run(self) -> None:
        """Route until stopped. Returns when everything it held is answered; raises only for a fault in here."""
        await self._begin()
        self._fault = asyncio.get_running_loop().create_future()
        for work in (self._keep_time(), self._dispatch_when_ready(), self._watch_lease(), self._upkeep.run()):
            self._spawn(work)
        try:
            await self._unless_fault(self._reader.run())
            while len(self.held):
                await self._unless_fault(asyncio.sleep(0.01))
        finally:
            for task in list(self._tasks):
                await end_task(task)
            await self._give_back()
            await self._redis.aclose()
            await self._redis_once.aclose()

    async def _give_back(self) -> None:
        """What is still held is anybody's at once, and counts as if it had never been read."""
        with suppress(RedisError, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_S):
                await scripts.release(self._redis, self.model, self._lease.consumer)

    async def _unless_fault(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`; if a task of this router fails meanwhile, raise what it raised."""
        assert self._fault is not None
        main = asyncio.create_task(work)
        try:
            await asyncio.wait({main, self._fault}, return_when=asyncio.FIRST_COMPLETED)
            if self._fault.done():
                self._fault.result()
            await main
        finally:
            await end_task(main)

    def stop(self) -> None:
        """Read nothing more, and let `run` return once what is held is answered."""
        self._reader.stop()

    @property
    def reachable(self) -> bool:
        """Whether lanes can be read at the moment."""
        return self._reader.reachable

    async def _begin(self) -> None:
        """Make the model known, waiting for Redis if need be."""
        while True:
            try:
                await self._register()
                await self._clock.look(self._redis)
                await self._lease.wait_held()  # what is read without one, others may take over at once
            except RedisError as error:
                log.warning("router of %s waits for Redis: %s", self.model, error)
                await asyncio.sleep(0.5)
            else:
                break
        self._pool.listen(self._replicas_changed)

    async def _register(self) -> None:
        await register(self._redis, self.model, self.policy.limits, shards=self.policy.shards)

    def _replicas_changed(self, replicas: frozenset[str]) -> None:
        self.scheduler.slots.update(replicas)
        self._something_changed()

    def _something_changed(self) -> None:
        self._wake.set()
        self._reader.credit_changed()

    # -- in ---------------------------------------------------------------------------------------------

    def _plan_reading(self) -> Reading | None:
        slots, former = self.scheduler.slots, self.scheduler.former
        return plan_reading(
            self._credit,
            free_slots=slots.free(self._clock.now_s()) if self.scheduler.breaker.closed else 0,
            replicas=slots.replicas,
            waiting=(former.waiting_of(0), former.waiting_of(1), former.waiting_of(2)),
            active=self._reader.active,
            held_bytes=self.held.bytes,
            mean_bytes=self.held.mean_bytes,
        )

    def _take(self, entries: Sequence[LaneEntry]) -> None:
        self.scheduler.former.note_arrivals(len(entries), self._clock.now_s())
        for entry in entries:
            if entry not in self.held and (job := self._hold(entry)) is not None:
                self.scheduler.former.add(job)
        self._wake.set()

    def _hold(self, entry: LaneEntry) -> WaitingJob | None:
        """The job of an entry that is to run. One that is not understood is left alone, or answered."""
        self.counts.read += 1
        try:
            envelope = entry.envelope
        except DecodeError as error:
            log.error("left alone in lane %d of %s: %s", entry.lane, self.model, error)
            return None
        job = self.held.add(entry, envelope, self.estimate.tokens(len(entry.payload)))
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

    def _room_to_take_over(self) -> int:
        """How many jobs of dead routers may be taken: they go before what waits in lanes, as memory allows."""
        if self.scheduler.slots.replicas == 0:
            return 0
        return int((self._credit.max_held_bytes - self.held.bytes) / max(1.0, self.held.mean_bytes))

    def _take_over(self, reaped: Sequence[Reaped]) -> None:
        for row in reaped:
            try:
                entry = LaneEntry.read(row.lane, row.entry_id, row.fields)
            except DecodeError as error:
                log.error("left alone in lane %d of %s: %s", row.lane, self.model, error)
                continue
            if entry in self.held or (job := self._hold(entry)) is None:
                continue
            self.counts.reaped += 1
            if row.cancelling:
                self._ender.cancel([job])
            elif row.lone_failures or row.deliveries >= _SUSPECT_FROM:
                job.lone_failures = row.lone_failures
                self.scheduler.quarantine.add([job])
            else:
                self.scheduler.former.add(job)
        self._wake.set()

    async def _watch_lease(self) -> None:
        """After a lapse others may have what is held here: forget what was not dispatched, and look again."""
        seen = self._lease.lapses
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            if self._lease.lapses == seen:
                continue
            seen = self._lease.lapses
            log.warning("the lease of the router of %s had lapsed; it looks again at what it holds", self.model)
            for job in self.scheduler.former.clear():  # suspects stay: what is known of them is known only here
                self.held.let_go(job)
            self._reader.adopt_again()

    def _cancel(self, job_ids: Sequence[str]) -> None:
        """End those that have not been dispatched; the others' answers may come first."""
        self._ender.cancel(self.scheduler.discard(self.held.named(job_ids)))

    # -- out --------------------------------------------------------------------------------------------

    async def _dispatch_when_ready(self) -> None:
        while True:
            wait_s = self._dispatch_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()

    def _dispatch_all(self) -> float | None:
        """Fill slots while there are any; returns the seconds until it is worth trying again, if known."""
        now_s = self._clock.now_s()
        self._ender.expire(self.scheduler.expired(now_s))
        dispatched = False
        while (chosen := self.scheduler.next_batch(now_s)) is not None:
            self._spawn(self._send(*chosen))
            dispatched = True
        if dispatched:
            self._reader.credit_changed()
        return self.scheduler.wait_s(now_s)

    async def _dispatch(self, jobs: list[WaitingJob], slot: Slot) -> None:
        """Send a batch to its replica, and see to every job of it."""
        try:
            outcome = _outcome_of(len(jobs), await self._calls.run(slot, self._message(jobs, slot)))
        except (ReplicaLostError, BatchFailedError, TimeoutError, DecodeError) as error:
            log.warning("batch of %d jobs of %s at %s: %r", len(jobs), self.model, slot.replica, error)
            self._failed(jobs, slot, error)
        else:
            self._came_back(jobs, slot, outcome)
        self._something_changed()

    def _message(self, jobs: Sequence[WaitingJob], slot: Slot) -> bytes:
        self.counts.batches += 1
        self.counts.dispatched += len(jobs)
        return Batch(self.model, self._clock.now_ms(), [job.key for job in jobs], slot.alone).to_bytes()

    async def _dispatch_streamed(self, jobs: list[WaitingJob], slot: Slot) -> None:
        """The same where jobs end one by one, each of which makes room for another at once."""
        flight = Flight(jobs)
        try:
            async with aclosing(self._calls.stream(slot, self._message(jobs, slot))) as messages:
                async for message in messages:
                    self._heard(flight, slot, JobOutcomes.from_bytes(message))
            if flight.left:
                raise BatchFailedError(f"replica {slot.replica} said nothing of {len(flight.left)} jobs")
        except (ReplicaLostError, BatchFailedError, TimeoutError, DecodeError) as error:
            log.warning("%d jobs of %s at %s: %r", len(flight.left), self.model, slot.replica, error)
            if flight.left:
                self._failed(flight.left, slot, error, computed=flight.computed)
        self._something_changed()

    def _heard(self, flight: Flight, slot: Slot, outcomes: JobOutcomes) -> None:
        """See to the jobs that ended."""
        ended = flight.take(outcomes)
        if not ended:
            return
        if flight.refused(outcomes):
            self.counts.returned += len(ended)
            self.scheduler.refused(ended, slot, self._clock.now_s())
        else:
            self.scheduler.ended(len(ended), slot, left=len(flight.left))
            for job, tokens in zip(ended, outcomes.tokens, strict=True):
                self._learn_of(job, tokens)
            self._settle(ended, outcomes.fates)
        self._something_changed()

    def _learn_of(self, job: WaitingJob, tokens: int) -> None:
        """What a job took that was charged for by a guess."""
        if tokens:
            self.scheduler.former.settle(job, tokens)
            self.estimate.learn(job.bytes, tokens)
            self.counts.tokens += tokens

    def _came_back(self, jobs: list[WaitingJob], slot: Slot, outcome: BatchOutcome) -> None:
        if all(fate == Fate.RETURNED for fate in outcome.fates):
            self.counts.returned += len(jobs)
            self.scheduler.refused(jobs, slot, self._clock.now_s())
            return
        self.scheduler.came_back(slot)
        self._learn(jobs, outcome)
        self._settle(jobs, outcome.fates)

    def _failed(self, jobs: list[WaitingJob], slot: Slot, failure: Exception, *, computed: bool = False) -> None:
        """Have it found out which job it was, unless the batch never reached the replica."""
        now_s = self._clock.now_s()
        self.counts.returned += len(jobs)
        if isinstance(failure, ReplicaLostError) and not failure.reached:
            self.scheduler.not_sent(jobs, slot, now_s)
            return
        died = isinstance(failure, ReplicaLostError | TimeoutError)
        self.counts.replica_deaths += died
        convicted = self.scheduler.failed(jobs, slot, now_s, died=died, computed=computed)
        if convicted is not None:
            self._ender.convict(convicted, failure, died=died)
        elif jobs[0].lone_failures:
            self._spawn(self._blame(jobs[0]))

    async def _blame(self, job: WaitingJob) -> None:
        """Have the next router know, should this one die before the job's second trial."""
        entry = job.key
        with suppress(RedisError):
            await scripts.blame(
                self._redis,
                self.model,
                self._lease.consumer,
                lane=entry.lane,
                entry_id=entry.entry_id,
                lone_failures=job.lone_failures,
            )

    def _learn(self, jobs: Sequence[WaitingJob], outcome: BatchOutcome) -> None:
        ran = [(job.bytes, tokens) for job, tokens in zip(jobs, outcome.tokens, strict=True) if tokens]
        tokens = sum(tokens for _, tokens in ran)
        self.estimate.learn(sum(size for size, _ in ran), tokens)
        self.counts.tokens += tokens
        self.counts.run_s += outcome.run_s

    def _settle(self, jobs: Sequence[WaitingJob], fates: Sequence[int]) -> None:
        for job, fate in zip(jobs, fates, strict=True):
            if fate == Fate.RETURNED:
                self.counts.returned += 1
                self.scheduler.former.add(job)
                continue
            self.counts.answered += fate == Fate.ANSWERED
            self.counts.late += fate == Fate.LATE
            self.counts.delayed += fate == Fate.DELAYED
            self.held.let_go(job)

    def _let_go(self, jobs: Sequence[WaitingJob]) -> None:
        for job in jobs:
            self.held.let_go(job)
        self._something_changed()

    # -- time and tasks -----------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Answer what expires while it waits here, also when nothing is dispatched."""
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._ender.expire(self.scheduler.expired(self._clock.now_s()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a fault in the router of %s", self.model, exc_info=error)
            if self._fault is not None and not self._fault.done():
                self._fault.set_exception(error)
