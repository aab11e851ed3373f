"""The router of one model: lanes in, batches out. The thin shell around the pure classes.

Three things happen, each in a task of its own: the reader takes what there is credit for; the dispatcher
forms a batch whenever a slot is free and the former says it is time; and each batch that is out is awaited, as a whole
or job by job. Now and then its `RouterProcess`, which it may share with other models' routers, tells it the time, and
that there is cause for `Upkeep`: to take over what dead routers left, say. What the router holds is known to Redis as
pending with its consumer, so nothing here needs to be saved.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final
from zlib import crc32

from headrace import scripts
from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.models.registry import Limits, register
from headrace.server.clock import ServerClock
from headrace.tasks import end_task
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_cluster.pools.port import PoolPort
from headrace_cluster.pools.replica_calls import ReplicaCalls
from headrace_cluster.router.dispatcher import Dispatcher
from headrace_cluster.router.ender import Ender
from headrace_cluster.router.generation import GenerationFence
from headrace_cluster.router.held_jobs import HeldJobs
from headrace_cluster.router.intake import Intake
from headrace_cluster.router.lane_reader import LaneReader
from headrace_cluster.router.pool_memory import PoolMemory
from headrace_cluster.router.process import RouterProcess
from headrace_cluster.router.upkeep import Leaseholder, Upkeep
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.scheduling.credit import credit_of
from headrace_cluster.scheduling.routing import RouterCounts, RoutingPolicy
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.scheduling.token_estimate import TokenEstimate
from headrace_cluster.slots.ledger import Slot
from headrace_cluster.slots.table import SlotTable

__all__ = ["ModelRouter"]

log = logging.getLogger("headrace.router")

_REMEMBER_EVERY: Final = 20
"""Ticks from one time that what was learned of pools is written to the next."""
_GIVE_BACK_S: Final = 2.0
"""How long a router that ends tries to give back what it holds."""


class ModelRouter:
    """Routes one model's jobs from its lanes to its pool.

    Args:
        model: the name under which producers know it.
        url: the Redis server.
        pool: where batches go.
        policy: how.
        lease: of this router's consumer, whose name is fresh for each of its lives.
        fence: of the application's generation; without one there is only one generation.
        watch: records what passes through.
        slots: who counts slots; None: the router for itself.
        process: what it shares with other models' routers of its lease; None: it has one of its own.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        pool: PoolPort,
        policy: RoutingPolicy,
        lease: Leaseholder,
        fence: GenerationFence | None = None,
        watch: RouterWatch | None = None,
        slots: SlotTable | None = None,
        process: RouterProcess | None = None,
    ) -> None:
        self.model = model
        self.fence = fence or GenerationFence()
        self.watch = watch or RouterWatch(model)
        self.policy = policy
        self.counts = RouterCounts()
        self.scheduler = Scheduler(
            policy.forming,
            batches_per_replica=policy.batches_per_replica,
            jobs_per_replica=policy.jobs_per_replica,
            lone_failures=policy.lone_failures,
            pools=policy.pools,
            slots=slots,
        )
        self.held = HeldJobs()
        self.estimate = TokenEstimate()
        self._clock = ServerClock(keys_of(model).prefix)
        self._process = process or RouterProcess(url, lease, every_s=policy.upkeep_every_s, block_ms=policy.block_ms)
        self._at_home = process is None
        self._redis = self._process.redis
        self._pool = pool
        self._memory = PoolMemory(model, self._process.redis_once, self.scheduler.costs)
        self._ender = Ender(model, self._redis, self.counts, spawn=self._spawn, let_go=self._let_go)
        self._intake = Intake(
            model,
            credit_of(policy),
            self.scheduler,
            self._clock,
            self.fence,
            held=self.held,
            counts=self.counts,
            estimate=self.estimate,
            ender=self._ender,
            woken=self.wake,
        )
        self._dispatcher = Dispatcher(
            model,
            self.scheduler,
            ReplicaCalls(
                model,
                pool,
                timeout_s=policy.call_timeout_s,
                look=lambda: self._clock.look(self._redis),
                suspend=lambda slot, for_s: self.scheduler.slots.suspend(slot, self._clock.now_s(), for_s=for_s),
                resume=lambda slot: self.scheduler.slots.resume(slot),
            ),
            self._clock,
            held=self.held,
            counts=self.counts,
            estimate=self.estimate,
            ender=self._ender,
            watch=self.watch,
            spawn=self._spawn,
            blame=self._blame,
            changed=self._something_changed,
        )
        self._send = self._dispatcher.stream if policy.jobs_per_replica else self._dispatcher.run
        self._lease = lease
        self._lapses = 0
        self._ticks = crc32(model.encode()) % _REMEMBER_EVERY  # so that not all models write at once
        self.upkeep = Upkeep(
            model,
            self._process.redis_once,
            lease,
            self._clock,
            self.fence,
            room=self._intake.room_to_take_over,
            take_over=self._intake.take_over,
            look_again=lambda: self._reader.adopt_again(),
            cancel=self._intake.cancel,
            led=self._leader_changed,
            hand_back=self._hand_back,
            spawn=self._spawn,
        )
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: asyncio.Future[None] | None = None
        self._reader = LaneReader(
            self._process.lane_reads,
            model,
            credit=self._intake.credit,
            take=self._intake.take,
            restore=self._register,
        )

    async def run(self) -> None:
        """Route until stopped. Returns when everything it held is answered; raises only for a fault in here."""
        await self._begin()
        self._fault = asyncio.get_running_loop().create_future()
        self._lapses = self._lease.lapses
        self._spawn(self._dispatch_when_ready())
        self._process.join(self)
        try:
            await self._unless_fault(self._reader.run())
            while len(self.held):
                await self._unless_fault(asyncio.sleep(0.01))
        finally:
            await self._process.leave(self)
            for task in list(self._tasks):
                await end_task(task)
            await self._give_back()
            if self._at_home:
                await self._process.close()

    async def _give_back(self) -> None:
        """What is still held is anybody's at once, and counts as if it had never been read."""
        self._lease.leave(self.model)
        with suppress(RedisError, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_S):
                await scripts.release(self._redis, self.model, self._lease.consumer)
                await self._memory.save()

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
        self.fence.retire()
        self._reader.stop()

    @property
    def reachable(self) -> bool:
        """Whether lanes can be read at the moment."""
        return self._reader.reachable

    async def _begin(self) -> None:
        """Make the model known, waiting for Redis if need be."""
        while True:
            try:
                await self.upkeep.ask_who_leads()
                if self.fence.leads:
                    await self._register()
                await self._clock.look(self._redis)
                await self._memory.load()
                await self._lease.wait_held()  # what is read without one, others may take over at once
            except RedisError as error:
                log.warning("router of %s waits for Redis: %s", self.model, error)
                await asyncio.sleep(0.5)
            else:
                break
        self._pool.listen(self._replicas_changed)

    async def _register(self) -> None:
        limits, shards = self.policy.limits, self.policy.shards
        await register(self._redis, self.model, limits, shards=shards, generation=self.fence.number)

    def _leader_changed(self) -> None:
        log.info("generation %d %s %s", self.fence.number, "reads" if self.fence.leads else "reads no more", self.model)
        if self._fault is not None and self.fence.leads:  # it runs: what it was told of the model counts from now on
            self._spawn(self._make_known())
        self._something_changed()

    def set_limits(self, limits: Limits) -> None:
        """Have other limits hold from now on."""
        if limits == self.policy.limits:
            return
        self.policy = dataclasses.replace(self.policy, limits=limits)
        if self._fault is not None and self.fence.leads:
            self._spawn(self._make_known())

    async def _make_known(self) -> None:
        while True:
            try:
                return await self._register()
            except RedisError as error:
                log.warning("router of %s waits for Redis: %s", self.model, error)
                await asyncio.sleep(0.5)

    async def _hand_back(self) -> None:
        """Another generation reads: what could not be run in time is anybody's."""
        self._intake.let_go()
        await scripts.release(self._redis, self.model, self._lease.consumer, stays=True)

    def _replicas_changed(self, replicas: frozenset[str]) -> None:
        self.fence.replicas_changed(replicas)
        self.scheduler.slots.update(replicas)
        self._something_changed()

    def wake(self) -> None:
        """There may be a slot for what waits here."""
        self._wake.set()

    def _something_changed(self) -> None:
        self._wake.set()
        self._reader.credit_changed()

    def _watch_lease(self) -> None:
        """After a lapse others may have what is held here: forget what was not dispatched, and look again."""
        if self._lease.lapses == self._lapses:
            return
        self._lapses = self._lease.lapses
        log.warning("the lease of the router of %s had lapsed; it looks again at what it holds", self.model)
        self._intake.forget()
        self._reader.adopt_again()

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
        while (hedge := self.scheduler.next_hedge(now_s)) is not None:
            self._dispatcher.hedge(*hedge)
        while (chosen := self._next_batch(now_s)) is not None:
            self._spawn(self._send(*chosen))
            dispatched = True
        if dispatched:
            self._reader.credit_changed()
        return self.scheduler.wait_s(now_s)

    def _next_batch(self, now_s: float) -> tuple[list[WaitingJob], Slot] | None:
        began_s = time.perf_counter()
        chosen = self.scheduler.next_batch(now_s)
        if chosen is not None:
            self.watch.formed(time.perf_counter() - began_s)
        return chosen

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

    def _let_go(self, jobs: Sequence[WaitingJob]) -> None:
        for job in jobs:
            self.held.let_go(job)
        self._something_changed()

    # -- time and tasks -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Answer what expires while it waits here, also when nothing is dispatched, and see who is late."""
        self._ticks += 1
        self._watch_lease()
        self._ender.expire(self.scheduler.expired(self._clock.now_s()))
        if self.reachable and self.scheduler.look_for_stragglers(self._clock.now_s()):
            self._wake.set()
        if self._ticks % _REMEMBER_EVERY == 0:
            self._spawn(self._memory.keep())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End by a fault in here: `run` raises it."""
        log.error("a fault in the router of %s", self.model, exc_info=error)
        if self._fault is not None and not self._fault.done():
            self._fault.set_exception(error)
