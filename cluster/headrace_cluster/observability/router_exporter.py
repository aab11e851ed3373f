"""The metrics of a router process that are not of single batches: its counts, what it holds, and what lies in Redis.

Counts grow in plain integers where jobs pass, and are recorded here every other second, as what they grew by. What
lies in Redis is the same for all routers: one of them asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import redis.asyncio

from headrace import scripts
from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.messages.job import PRIORITIES
from headrace.models.overview import ModelOverview, read_overviews
from headrace.server.connection import commands, execute_near, translated
from headrace_cluster.router.model_router import ModelRouter
from headrace_workers.telemetry.metering import Meter

__all__ = ["RouterExporter"]

log = logging.getLogger("headrace.router")

_EVERY_S: Final = 2.0
_REDIS_EVERY_S: Final = 5.0
_COUNTERS: Final[Mapping[str, str]] = {
    "read": "headrace_read_jobs_total",
    "dispatched": "headrace_dispatched_jobs_total",
    "answered": "headrace_answered_jobs_total",
    "late": "headrace_late_jobs_total",
    "delayed": "headrace_retried_jobs_total",
    "returned": "headrace_returned_jobs_total",
    "expired": "headrace_expired_jobs_total",
    "cancelled": "headrace_cancelled_jobs_total",
    "convicted": "headrace_dead_lettered_jobs_total",
    "refused": "headrace_refused_jobs_total",
    "reaped": "headrace_reaped_jobs_total",
    "replica_deaths": "headrace_replica_deaths_total",
    "hedged": "headrace_hedged_batches_total",
}
"""Of `RouterCounts`, as what each is exported."""


class RouterExporter:
    """Records the metrics of all models that one process routes.

    Args:
        meter: where they go.
        url: the Redis server.
        routers: by model, or shard of one.
        lease_held: whether the process's lease stands.
        asks_redis: whether this is the process that reads what is the same for all.
    """

    def __init__(
        self,
        meter: Meter,
        url: str,
        routers: Mapping[str, ModelRouter],
        *,
        lease_held: Callable[[], bool],
        asks_redis: Callable[[], bool],
    ) -> None:
        self._meter = meter
        self._url = url
        self._routers = routers
        self._lease_held = lease_held
        self._asks_redis = asks_redis
        self._exported: dict[tuple[str, str], int] = {}
        self._pools: dict[str, set[str]] = {model: set() for model in routers}
        self._asked_s = float("-inf")

    async def run(self) -> None:
        """Record until cancelled. An outage of Redis costs the metrics that come from there, and nothing else."""
        near = keys_of(next(iter(self._routers))).prefix
        client = commands(self._url, retries=0)
        try:
            while True:
                try:
                    await self._round(client, near)
                except Exception:  # whatever is wrong with metrics, jobs go on
                    log.exception("metrics could not be recorded; trying again")
                await asyncio.sleep(_EVERY_S)
        finally:
            self.export()
            await client.aclose()

    async def _round(self, client: redis.asyncio.Redis, near: str) -> None:
        self.export()
        with suppress(RedisError):
            await self._probe(client, near)
            await self._ask(client)

    # -- of this process --------------------------------------------------------------------------------------

    def export(self) -> None:
        """Record what the routers did since the last time, and hold now."""
        for model, router in self._routers.items():
            router.watch.flush()
            self._export_counts(model, router)
            self._export_state(model, router)
        self._meter.set("headrace_lease_held", float(self._lease_held()))
        self._meter.flush()

    def _export_counts(self, model: str, router: ModelRouter) -> None:
        for field, name in _COUNTERS.items():
            value = getattr(router.counts, field)
            self._meter.add(name, value - self._exported.get((model, field), 0), model=model)
            self._exported[model, field] = value

    def _export_state(self, model: str, router: ModelRouter) -> None:
        slots = router.scheduler.slots
        self._meter.set("headrace_router_held_jobs", len(router.held), model=model)
        self._meter.set("headrace_in_flight_batches", slots.in_flight, model=model)
        if router.fence.leads:
            self._meter.set("headrace_generation", router.fence.number, model=model)
        self._pools[model].update(slots.pools)
        for pool in self._pools[model]:
            self._meter.set("headrace_replicas", slots.pools.get(pool, 0), model=model, pool=pool)
        for pool, cost in list(router.scheduler.costs.models.items()):
            if cost.measured:
                self._meter.set("headrace_cost_error_ratio", cost.error, model=model, pool=pool)

    # -- of all -------------------------------------------------------------------------------------------------

    async def _probe(self, client: redis.asyncio.Redis, near: str) -> None:
        began_s = time.perf_counter()
        async with translated("asking the server for its time"):
            await execute_near(client, near, "TIME")
        self._meter.set("headrace_redis_latency_seconds", time.perf_counter() - began_s)

    async def _ask(self, client: redis.asyncio.Redis) -> None:
        now_s = time.monotonic()
        if not self._asks_redis() or now_s - self._asked_s < _REDIS_EVERY_S:
            return
        self._asked_s = now_s
        for overview in await read_overviews(client, list(self._routers)):
            self._export_overview(overview)
        for model in self._routers:
            _, _, _, oldest_ms = await scripts.BACKLOG(client, keys_of(model).prefix, [])
            self._meter.set("headrace_oldest_waiting_seconds", int(oldest_ms) / 1000, model=model)

    def _export_overview(self, overview: ModelOverview) -> None:
        meter, model, audit = self._meter, overview.model, overview.audit
        waiting = dict.fromkeys(PRIORITIES, 0)
        for lane in overview.lanes:
            waiting[lane.priority] += lane.waiting
        for priority, jobs in waiting.items():
            meter.set("headrace_waiting_jobs", jobs, model=model, priority=priority)
        meter.set("headrace_backlog_work_seconds", self._work_s(model, sum(waiting.values())), model=model)
        meter.set("headrace_delivered_jobs", overview.delivered, model=model)
        meter.set("headrace_delayed_jobs", audit.delayed, model=model)
        meter.set("headrace_dead_letters", audit.dead_letters, model=model)
        meter.set("headrace_live_jobs", audit.live, model=model)
        meter.set("headrace_audit_difference_jobs", audit.submitted - audit.finished - audit.live, model=model)

    def _work_s(self, model: str, jobs: int) -> float:
        """How long one replica of the fastest pool would work on so many jobs, in full batches."""
        router = self._routers[model]
        costs, forming = router.scheduler.costs, router.policy.forming
        tokens = costs.mean_tokens or 1.0
        size = (
            1 if router.policy.jobs_per_replica else max(1, min(jobs, forming.max_jobs, forming.max_tokens // tokens))
        )
        batch_s = [cost.predict_s(size, size * tokens) for cost in costs.models.values() if cost.measured]
        return min(batch_s, default=0.0) * jobs / size
