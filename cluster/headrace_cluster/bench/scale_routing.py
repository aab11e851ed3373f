"""What a job costs the router and the Redis server, at every size: replicas, models, and jobs that wait.

A real router and real replicas with engines that do nothing, on two threads of this process; a real server beside it.
The router's cost is the CPU time of its thread, which neither other processes nor the interpreter's lock add to.

Every model has some dozen batches at least: what its first and its last job cost beyond the others (connections, what a
tenant leaves behind) belongs to the beginning and the end of work, and not to how many models there are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import redis

from headrace import AsyncClient, Job
from headrace.models.registry import Limits, register
from headrace.tasks import end_task
from headrace_cluster.bench.thread_pool import ReplicaThread
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.router.collector import settle
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.router.process import RouterProcess
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy

__all__ = ["RoutingPlan", "Size", "flatness", "measure_routing"]

Say = Callable[[str], None]

_BATCH_JOBS: Final = 64
_SUBMITTED_TOGETHER: Final = 4096
_LONG_TO_FILL: Final = 500_000
"""Waiting jobs: all rounds of such a size are measured one behind the other, for once."""
_WITHIN_S: Final = 300.0
_STOP_S: Final = 30.0
_LIMITS: Final = Limits(lane_capacity=10_000_000, tenant_capacity=10_000_000)
_TENANTS: Final = 8
"""Producers' names that take turns, so that jobs lie in all lanes of their priority."""


@dataclass(frozen=True, slots=True)
class Size:
    """One size of service."""

    replicas: int = 1
    models: int = 1
    waiting: int = 0
    """Jobs that wait beyond those that are answered."""

    def __str__(self) -> str:
        return f"replicas={self.replicas},models={self.models},waiting={self.waiting}"


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """How much to measure."""

    jobs: int = 25_600
    """Answered at each size, divided between the models."""
    least_each: int = 1_024
    """Answered of each model all the same."""
    replicas: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    models: tuple[int, ...] = (1, 10, 100)
    waiting: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    payload_bytes: int = 200
    rounds: int = 3
    """Over all sizes, one after the other. The cheapest counts, at each size: what else the machine does only adds."""

    @classmethod
    def quick(cls) -> RoutingPlan:
        """A short look."""
        return cls(jobs=6_400, replicas=(1, 64), models=(1, 100), waiting=(1_000, 10_000), rounds=1)


@dataclass(slots=True)
class Cost:
    """What a job took at one size."""

    replicas: int
    models: int
    waiting: int
    router_cpu_us_per_job: float
    redis_ops_per_job: float
    mean_batch_jobs: float
    bytes_per_waiting_job: float


def measure_routing(plan: RoutingPlan, say: Say) -> dict[str, Any]:
    """The cost of a job at every size of the plan, and how flat it is along each axis."""
    axes = {
        "replicas": [Size(replicas=count) for count in plan.replicas],
        "models": [Size(models=count) for count in plan.models],
        "waiting": [Size(waiting=count) for count in plan.waiting],
    }
    sizes = list(dict.fromkeys(size for axis in axes.values() for size in axis))
    costs: dict[Size, list[Cost]] = {size: [] for size in sizes}
    for number in range(plan.rounds):
        for size in sizes:
            if number == 0 or size.waiting < _LONG_TO_FILL:
                say(f"routing, round {number + 1} of {plan.rounds}: {size}")
                costs[size] += _measure_afresh(plan, size)
    measured = {size: _cheapest(costs[size]) for size in sizes}
    waiting = [measured[size].bytes_per_waiting_job for size in axes["waiting"]]
    return {
        "router_cpu_us_per_job": {str(size): round(cost.router_cpu_us_per_job, 2) for size, cost in measured.items()},
        "redis_ops_per_job": {str(size): round(cost.redis_ops_per_job, 3) for size, cost in measured.items()},
        "router_cpu_flatness": {
            axis: flatness([measured[size].router_cpu_us_per_job for size in sizes]) for axis, sizes in axes.items()
        },
        "redis_ops_flatness": {
            axis: flatness([measured[size].redis_ops_per_job for size in sizes]) for axis, sizes in axes.items()
        },
        "bytes_per_waiting_job": round(waiting[-1], 1),
        "bytes_per_waiting_job_flatness": flatness(waiting),
        "payload_bytes": plan.payload_bytes,
        "sizes": [asdict(cost) for cost in measured.values()],
    }


def flatness(values: Sequence[float]) -> float:
    """By how much the dearest is above the cheapest, as a share of it."""
    return round(max(values) / min(values) - 1, 3)


def _cheapest(costs: Sequence[Cost]) -> Cost:
    best = min(costs, key=lambda cost: cost.router_cpu_us_per_job)
    return replace(best, redis_ops_per_job=min(cost.redis_ops_per_job for cost in costs))


def _measure_afresh(plan: RoutingPlan, size: Size) -> list[Cost]:
    """On a server of its own, the cost of each stretch."""
    with EmbeddedServer(fsync="everysec", die_with_parent=True) as server:
        return asyncio.run(_measure(plan, size, server.url))


async def _measure(plan: RoutingPlan, size: Size, url: str) -> list[Cost]:
    models = [f"m{n}" for n in range(size.models)]
    with redis.Redis.from_url(url) as admin:
        before_bytes = _used_bytes(admin)
        jobs = max(plan.least_each, -(-plan.jobs // (_BATCH_JOBS * size.models)) * _BATCH_JOBS)
        stretches = plan.rounds if size.waiting >= _LONG_TO_FILL else 1
        each = jobs * stretches + -(-size.waiting // size.models)
        await _fill(url, models, each, plan.payload_bytes)
        bytes_per_job = (_used_bytes(admin) - before_bytes) / (each * size.models)
        with ReplicaThread(url) as replicas:
            ends = [jobs * (number + 1) for number in range(stretches)]
            return await _route(admin, url, models, ends, size, replicas, bytes_per_job)


def _used_bytes(admin: redis.Redis) -> int:
    return int(admin.info("memory")["used_memory"])


async def _fill(url: str, models: Sequence[str], each: int, payload_bytes: int) -> None:
    """Have so many jobs wait for each model."""
    payload = "x" * payload_bytes
    async with AsyncClient(url) as client:
        for model in models:
            await register(client._redis, model, _LIMITS)
            for start in range(0, each, _SUBMITTED_TOGETHER):
                some = range(start, min(each, start + _SUBMITTED_TOGETHER))
                await client.submit_many([Job(model=model, input=payload, tenant=f"t{n % _TENANTS}") for n in some])


async def _route(
    admin: redis.Redis,
    url: str,
    models: Sequence[str],
    ends: Sequence[int],
    size: Size,
    replicas: ReplicaThread,
    bytes_per_job: float,
) -> list[Cost]:
    """Begin everything, then count from when the first replica is there, a stretch after the other, each until so many
    jobs of every model are answered."""
    policy = RoutingPolicy(forming=FormingPolicy(max_jobs=_BATCH_JOBS), limits=_LIMITS)
    lease = Lease(url, models, consumer="bench")
    lease.start()
    process = RouterProcess(url, lease)
    pools = [replicas.pool(model, size.replicas) for model in models]
    routers = [
        ModelRouter(model, url, pool=pool, policy=policy, lease=lease, process=process)
        for model, pool in zip(models, pools, strict=True)
    ]
    tasks = [asyncio.create_task(router.run()) for router in routers]
    try:
        await _until(lambda: all(pool.heard for pool in pools), tasks)
        unsettle = settle()
        began = _Meter(admin, routers)
        for pool in pools:
            pool.open()
        costs = []
        for end in ends:
            await _until(lambda end=end: all(router.counts.answered >= end for router in routers), tasks)  # type: ignore[misc]
            now = _Meter(admin, routers)
            costs.append(now.since(began, size, bytes_per_job))
            began = now
        unsettle()
    finally:
        for router in routers:
            router.stop()
        await asyncio.wait(tasks, timeout=_STOP_S)  # what they hold is finished, so that no replica has any of it
        for task in tasks:
            await end_task(task)
        await process.close()
        await lease.stop()
    return costs


class _Meter:
    """What was used up to now."""

    def __init__(self, admin: redis.Redis, routers: Sequence[ModelRouter]) -> None:
        self._cpu_s = time.thread_time()
        self._ops = int(admin.info("stats")["total_commands_processed"])
        self._answered = sum(router.counts.answered for router in routers)
        self._batches = sum(router.counts.batches for router in routers)

    def since(self, before: _Meter, size: Size, bytes_per_waiting_job: float) -> Cost:
        """By CPU time of this thread and commands of the server; the size of batches is that of all so far."""
        answered = self._answered - before._answered
        return Cost(
            **asdict(size),
            router_cpu_us_per_job=(self._cpu_s - before._cpu_s) / answered * 1e6,
            redis_ops_per_job=(self._ops - before._ops) / answered,
            mean_batch_jobs=self._answered / max(1, self._batches),
            bytes_per_waiting_job=bytes_per_waiting_job,
        )


async def _until(condition: Callable[[], bool], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Return when something has come true.

    Raises:
        TimeoutError: that takes too long; or whatever a task has ended with.
    """
    async with asyncio.timeout(_WITHIN_S):
        while not condition():
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)
