"""Many models on two hosts, with real routers, a real Redis and real replicas: everything but Ray."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from headrace import AsyncClient, Job
from headrace_cluster.pools.shared_pool import SharedPool
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.hosting.model_host import ModelHost
from support.hosting import config_of, make
from support.local_pool import LocalPool
from support.waiting import eventually

MIB = 1 << 20
MODELS = 30


class SharedService:
    """Routers of some models over hosts that they share, in this process."""

    def __init__(self, url: str, names: Iterable[str], *, hosts: int, models_per_host: int) -> None:
        engines = {name: config_of(name) for name in names}
        self.hosts = {
            f"small/{number}": ModelHost(engines, redis_url=url, memory_bytes=models_per_host * MIB, make=make)
            for number in range(hosts)
        }
        self.port = LocalPool(self.hosts)
        self.pool = SharedPool(self.port)
        self.lease = Lease(url, list(engines), consumer="router")
        self.routers = {name: self._router(url, name) for name in engines}
        self._tasks: list[asyncio.Task[None]] = []

    def _router(self, url: str, name: str) -> ModelRouter:
        slots = self.pool.slots(name, model=name, jobs_per_replica=0, wake=lambda: self.routers[name].wake())
        policy = RoutingPolicy(forming=FormingPolicy(max_jobs=8), upkeep_every_s=2.0)
        return ModelRouter(name, url, pool=self.pool, policy=policy, lease=self.lease, slots=slots)

    async def start(self) -> None:
        self.lease.start()
        self._tasks = [asyncio.create_task(router.run()) for router in self.routers.values()]
        await eventually(lambda: all(router.reachable for router in self.routers.values()), within_s=60)

    async def stop(self) -> None:
        for router in self.routers.values():
            router.stop()
        await asyncio.gather(*self._tasks)
        await self.lease.stop()
        for host in self.hosts.values():
            await host.close()

    def total(self, what: str) -> int:
        return sum(host.info[what] for host in self.hosts.values())


@asynccontextmanager
async def sharing(
    url: str, names: Iterable[str], *, hosts: int = 2, models_per_host: int
) -> AsyncIterator[SharedService]:
    service = SharedService(url, names, hosts=hosts, models_per_host=models_per_host)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def answers(client: AsyncClient, jobs: list[Job]) -> list[str]:
    return [result.unwrap() async for result in client.map(jobs)]


async def test_many_models_with_skewed_traffic_on_two_hosts_that_hold_four_each(redis_url: str) -> None:
    """Each engine fails where it is given another model's jobs."""
    names = [f"m{number}" for number in range(MODELS)]
    weights = [1 / (rank + 1) for rank in range(MODELS)]
    drawn = [*names, *random.Random(1).choices(names, weights, k=100)]
    jobs = [Job(model=name, input=f"{name} {number}") for number, name in enumerate(drawn)]
    async with sharing(redis_url, names, models_per_host=4) as service, AsyncClient(redis_url) as client:
        outputs = await answers(client, jobs)
        assert outputs == [f"{name} {number} by {name}" for number, name in enumerate(drawn)]
        assert service.total("evictions") > MODELS // 2
        assert service.total("loads") < sum(router.counts.batches for router in service.routers.values())
        for name, count in Counter(drawn).items():
            audit = await client.audit(name)
            assert (audit.submitted, audit.finished, audit.live) == (count, count, 0)
        await eventually(lambda: all(slots.in_flight == 0 for slots in _slots(service)))


def _slots(service: SharedService) -> list:  # type: ignore[type-arg]
    return [router.scheduler.slots for router in service.routers.values()]


async def test_a_host_that_goes_is_replaced_and_its_models_are_loaded_elsewhere(redis_url: str) -> None:
    async with sharing(redis_url, ["a", "b"], models_per_host=2) as service, AsyncClient(redis_url) as client:
        jobs = [Job(model=name, input=f"{name} {number}") for number, name in enumerate("ab" * 20)]
        await answers(client, jobs[:20])
        gone, stays = service.hosts
        service.port.change({stays: service.hosts[stays]})
        assert len(await answers(client, jobs[20:])) == 20
        assert set(service.hosts[stays].info["models"]) == {"a", "b"}
        service.port.change({gone: service.hosts[gone], stays: service.hosts[stays]})


async def test_a_model_that_cannot_be_loaded_costs_the_others_nothing(redis_url: str) -> None:
    async with sharing(redis_url, ["a", "huge"], models_per_host=2) as service, AsyncClient(redis_url) as client:
        for host in service.hosts.values():
            host.models._seats["huge"].bytes = 9 * MIB
        failed = await client.run(Job(model="huge", input="huge 1"))
        assert failed.failure is not None
        assert "huge takes 9,437,184 bytes" in failed.failure.message
        assert (await client.run(Job(model="a", input="a 1"))).unwrap() == "a 1 by a"
