"""The router of one model: lanes in, batches out. The thin shell around the pure classes.

Three things happen, each in a task of its own: the reader takes what there is credit for; the dispatcher
forms a batch whenever a slot is free and the former says it is time; and each batch that is out is awaited.
What the router holds is known to Redis as pending with its consumer, so nothing here needs to be saved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.answers import write_answers
from headrace.connection import BLOCK_MS, commands
from headrace.errors import DecodeError, FailureCode, RedisError
from headrace.messages import Batch, BatchOutcome, Fate, LaneEntry, Status, pack_failure
from headrace.registry import Limits, register
from headrace.scripts import Answer
from headrace.server_clock import ServerClock
from headrace.tasks import end_task
from headrace_cluster.batch_former import BatchFormer, FormingPolicy, WaitingJob
from headrace_cluster.credit import CreditPolicy, Reading, plan_reading
from headrace_cluster.lane_reader import LaneReader
from headrace_cluster.pool_port import BatchFailedError, PoolPort, ReplicaLostError
from headrace_cluster.slots import Slot, SlotLedger
from headrace_cluster.token_estimate import TokenEstimate

__all__ = ["ModelRouter", "RouterCounts", "RoutingPolicy"]

log = logging.getLogger("headrace.router")

_CLOCK_EVERY_S: Final = 30.0
_EXPIRE_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """How one model's jobs are routed."""

    forming: FormingPolicy = field(default_factory=FormingPolicy)
    limits: Limits = field(default_factory=Limits)
    batches_per_replica: int = 2
    """One runs, the others are prepared meanwhile."""
    call_timeout_s: float = 300.0
    """How long a replica may take for one batch."""
    max_attempts: int = 3
    """How often a job is dispatched before it is answered with `pool_failed`."""
    block_ms: int = BLOCK_MS
    """How long a read waits at the server when there is nothing to read; the longest a stop has to wait."""


@dataclass(slots=True)
class RouterCounts:
    """What a router did since it started."""

    read: int = 0
    batches: int = 0
    dispatched: int = 0
    answered: int = 0
    late: int = 0
    returned: int = 0
    expired: int = 0
    refused: int = 0
    tokens: int = 0
    run_s: float = 0.0


_Place = tuple[int, str]
"""Lane and entry id: two lanes give their entries of one millisecond the same ids."""


def _place(entry: LaneEntry) -> _Place:
    return entry.priority, entry.entry_id


def _outcome_of(jobs: int, reply: bytes) -> BatchOutcome:
    outcome = BatchOutcome.from_bytes(reply)
    for of_jobs in (outcome.fates, outcome.tokens):
        if not isinstance(of_jobs, list) or len(of_jobs) != jobs:
            raise DecodeError(f"not the outcome of a batch of {jobs} jobs")
    return outcome


class ModelRouter:
    """Routes one model's jobs from its lanes to its pool.

    Args:
        model: the name under which producers know it.
        url: the Redis server.
        pool: where batches go.
        policy: how.
        consumer: this router's name in the consumer group, fresh for each of its lives.
    """

    def __init__(self, model: str, url: str, *, pool: PoolPort, policy: RoutingPolicy, consumer: str) -> None:
        self.model = model
        self.policy = policy
        self.counts = RouterCounts()
        self.former = BatchFormer(policy.forming)
        self.slots = SlotLedger(per_replica=policy.batches_per_replica)
        self.estimate = TokenEstimate()
        self._credit = CreditPolicy(batch_jobs=policy.forming.max_jobs)
        self._clock = ServerClock()
        self._redis = commands(url)
        self._pool = pool
        self._held: dict[_Place, WaitingJob] = {}
        self._held_bytes = 0
        self._mean_bytes = 1024.0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: asyncio.Future[None] | None = None
        self._reader = LaneReader(
            url,
            model,
            consumer=consumer,
            plan=self._plan_reading,
            take=self._take,
            restore=self._register,
            block_ms=policy.block_ms,
        )

    async def run(self) -> None:
        """Route until stopped. Returns when everything it held is answered; raises only for a fault in here."""
        await self._begin()
        self._fault = asyncio.get_running_loop().create_future()
        self._spawn(self._keep_time())
        self._spawn(self._dispatch_when_ready())
        try:
            await self._unless_fault(self._reader.run())
            while self._held:
                await self._unless_fault(asyncio.sleep(0.01))
        finally:
            for task in list(self._tasks):
                await end_task(task)
            await self._redis.aclose()

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
            except RedisError as error:
                log.warning("router of %s waits for Redis: %s", self.model, error)
                await asyncio.sleep(0.5)
            else:
                break
        self._pool.listen(self._replicas_changed)

    async def _register(self) -> None:
        await register(self._redis, self.model, self.policy.limits)

    def _replicas_changed(self, replicas: frozenset[str]) -> None:
        self.slots.update(replicas)
        self._something_changed()

    def _something_changed(self) -> None:
        self._wake.set()
        self._reader.credit_changed()

    # -- in ---------------------------------------------------------------------------------------------

    def _plan_reading(self) -> Reading | None:
        return plan_reading(
            self._credit,
            free_slots=self.slots.free(self._clock.now_s()),
            replicas=self.slots.replicas,
            waiting=(self.former.waiting_of(0), self.former.waiting_of(1), self.former.waiting_of(2)),
            held_bytes=self._held_bytes,
            mean_bytes=self._mean_bytes,
        )

    def _take(self, entries: Sequence[LaneEntry]) -> None:
        self.former.note_arrivals(len(entries), self._clock.now_s())
        for entry in entries:
            if _place(entry) not in self._held:
                self._take_one(entry)
        self._wake.set()

    def _take_one(self, entry: LaneEntry) -> None:
        self.counts.read += 1
        try:
            envelope = entry.envelope
        except DecodeError as error:
            log.error("left alone in lane %d of %s: %s", entry.priority, self.model, error)
            return
        size = len(entry.payload)
        job = WaitingJob(
            key=entry,
            tokens=self.estimate.tokens(size),
            bytes=size,
            priority=entry.priority,
            submitted_s=envelope.submitted_ms / 1000,
            deadline_s=envelope.deadline_ms / 1000 if envelope.deadline_ms else None,
        )
        self._held[_place(entry)] = job
        self._held_bytes += size
        self._mean_bytes += 0.01 * (size - self._mean_bytes)
        if envelope.supported:
            self.former.add(job)
        else:
            self._refuse(
                [job],
                FailureCode.UNSUPPORTED_VERSION,
                f"the job is of wire version {envelope.version}, which this service does not know",
                hint="upgrade the service, or submit with an older client",
            )

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
        dispatched = False
        while True:
            now_s = self._clock.now_s()
            slot = self.slots.best(now_s)
            ready_s = self.former.ready_at(now_s, idle=slot.idle) if slot is not None else None
            if slot is None or ready_s is None or ready_s > now_s:
                break
            jobs = self.former.form(now_s)
            self.slots.take(slot)
            self._spawn(self._dispatch(jobs, slot))
            dispatched = True
        if dispatched:
            self._reader.credit_changed()
        times = [time_s for time_s in (ready_s, self.slots.next_resume_s(now_s)) if time_s is not None]
        return max(0.0, min(times) - now_s) if times else None

    async def _dispatch(self, jobs: list[WaitingJob], slot: Slot) -> None:
        """Send a batch to its replica, and see to every job of it."""
        self.counts.batches += 1
        self.counts.dispatched += len(jobs)
        message = Batch(self.model, self._clock.now_ms(), [job.key for job in jobs]).to_bytes()
        fates: Sequence[int] = [Fate.RETURNED] * len(jobs)
        try:
            outcome = _outcome_of(len(jobs), await self._call(slot.replica, message))
            fates = outcome.fates
            self._learn(jobs, outcome)
        except (ReplicaLostError, BatchFailedError, TimeoutError, DecodeError) as error:
            log.warning("batch of %d jobs of %s at %s: %r", len(jobs), self.model, slot.replica, error)
            self.slots.suspend(slot, self._clock.now_s())
        finally:
            self.slots.release(slot)
        for job, fate in zip(jobs, fates, strict=True):
            self._settle(job, fate)
        self._something_changed()

    async def _call(self, replica: str, message: bytes) -> bytes:
        """Call the replica, in time. While Redis is away it has no way to finish, and the time stands still."""
        call = asyncio.ensure_future(self._pool.call(replica, message))
        try:
            while True:
                await asyncio.wait({call}, timeout=self.policy.call_timeout_s)
                if not call.done():
                    with suppress(RedisError):
                        await self._clock.look(self._redis)
                        if not call.done():
                            raise TimeoutError(f"no outcome after {self.policy.call_timeout_s} s")
                if call.done():
                    return call.result()
        finally:
            call.cancel()

    def _learn(self, jobs: Sequence[WaitingJob], outcome: BatchOutcome) -> None:
        ran = [(job.bytes, tokens) for job, tokens in zip(jobs, outcome.tokens, strict=True) if tokens]
        tokens = sum(tokens for _, tokens in ran)
        self.estimate.learn(sum(size for size, _ in ran), tokens)
        self.counts.tokens += tokens
        self.counts.run_s += outcome.run_s

    def _settle(self, job: WaitingJob, fate: int) -> None:
        if fate != Fate.RETURNED:
            self.counts.answered += fate == Fate.ANSWERED
            self.counts.late += fate == Fate.LATE
            self._let_go(job)
            return
        self.counts.returned += 1
        job.attempts += 1
        if job.attempts < self.policy.max_attempts:
            self.former.add(job)
            return
        self._refuse(
            [job],
            FailureCode.POOL_FAILED,
            f"no replica could run it in {job.attempts} attempts",
            hint="see the replicas' logs",
            retryable=True,
        )

    def _let_go(self, job: WaitingJob) -> None:
        if self._held.pop(_place(job.key), None) is not None:
            self._held_bytes -= job.bytes

    # -- answers of the router's own ----------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Answer what expires while it waits here, and look at the server's clock now and then."""
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            expired = self.former.expired(self._clock.now_s())
            if expired:
                self.counts.expired += len(expired)
                self._refuse(
                    expired, FailureCode.EXPIRED, "the deadline passed before a replica was free", status=Status.EXPIRED
                )
            if time.monotonic() - looked_s > _CLOCK_EVERY_S:
                looked_s = time.monotonic()
                with suppress(RedisError):
                    await self._clock.look(self._redis)

    def _refuse(
        self,
        jobs: Sequence[WaitingJob],
        code: FailureCode,
        message: str,
        *,
        hint: str = "",
        retryable: bool = False,
        status: Status = Status.ERROR,
    ) -> None:
        """Answer jobs that will not run."""
        self.counts.refused += len(jobs)
        body = pack_failure(code, message, hint=hint, retryable=retryable)
        self._spawn(self._write_refusals(jobs, status, body))

    async def _write_refusals(self, jobs: Sequence[WaitingJob], status: Status, body: bytes) -> None:
        entries = [job.key for job in jobs]
        await write_answers(
            self._redis,
            self.model,
            [Answer(entry.priority, entry.entry_id, entry.text, status, body) for entry in entries],
        )
        for job in jobs:
            self._let_go(job)
        self._something_changed()

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
