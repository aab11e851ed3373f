"""Many models in one router process: what is done once for all of them, and that none of them notices."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import pytest

from headrace import AsyncClient, CancelOutcome, Job, RetryPolicy, Status
from headrace.keys import keys_of
from headrace.scripts import GiveBack, retry
from headrace.server.connection import commands, execute
from headrace.tasks import end_task
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.router.process import RouterProcess
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_workers.engines.base import Engine
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.replicas.replica import Replica
from support.bad_days import GatedEngine
from support.by_hand import HandService
from support.local_pool import LocalPool
from support.proxy import Proxy
from support.routing import policy
from support.waiting import eventually

MODELS = [f"m{n}" for n in range(20)]


class ManyModels:
    """A router process with a router and a replica for each of `MODELS`.

    Args:
        url: the Redis server.
        engines: of those that do not echo.
        consumer: the name of the process's lease.
        forming: how batches are formed.
    """

    def __init__(
        self,
        url: str,
        engines: dict[str, Engine] | None = None,
        *,
        consumer: str = "process",
        forming: FormingPolicy | None = None,
    ) -> None:
        self.lease = Lease(url, MODELS, consumer=consumer)
        self.process = RouterProcess(url, self.lease, block_ms=100)
        of_own = engines or {}
        self.replicas = {name: Replica(name, of_own.get(name) or EchoEngine(), redis_url=url) for name in MODELS}
        self.routers = {
            name: ModelRouter(
                name,
                url,
                pool=LocalPool({"replica-0": self.replicas[name]}),
                policy=policy(forming=forming or FormingPolicy()),
                lease=self.lease,
                process=self.process,
            )
            for name in MODELS
        }
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self.lease.start()
        self.tasks = {name: asyncio.create_task(router.run()) for name, router in self.routers.items()}
        await eventually(lambda: all(router.reachable for router in self.routers.values()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for router in self.routers.values():
            router.stop()
        if error is None:
            await asyncio.wait(self.tasks.values(), timeout=10)
        await self.end()

    async def end(self) -> None:
        """Whatever they hold."""
        for task in self.tasks.values():
            await end_task(task)
        await self.process.close()
        await self.lease.stop()
        for replica in self.replicas.values():
            await replica.close()

    async def crash(self) -> None:
        """As kill -9: nothing is given back, and the heart stands still."""
        for router in self.routers.values():
            router._give_back = _nothing  # type: ignore[method-assign]
        await self.lease.stop()
        for task in self.tasks.values():
            await end_task(task)


async def _nothing() -> None:
    return


def one_each(**fields: Any) -> list[Job]:
    return [Job(model=name, input=name, id=f"of-{name}", **fields) for name in MODELS]


async def assert_nothing_lost(client: AsyncClient, each: int) -> None:
    for name in MODELS:
        audit = await client.audit(name)
        assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (each, each, 0, 0, 0), name


async def waiting_together(service: ManyModels) -> None:
    """Until every model is in a read that it shares."""
    await eventually(lambda: all(_quiet(router) for router in service.routers.values()))
    await asyncio.sleep(0.05)


def _quiet(router: ModelRouter) -> bool:
    return all(part._quiet for part in router._reader._parts)


# -- as a tutorial --------------------------------------------------------------------------------------------------


async def test_jobs_of_all_models_at_once(redis_url: str) -> None:
    async with ManyModels(redis_url), AsyncClient(redis_url) as client:
        jobs = [Job(model=MODELS[n % len(MODELS)], input=n) for n in range(1000)]
        assert [result.unwrap() async for result in client.map(jobs)] == list(range(1000))
        await assert_nothing_lost(client, 1000 // len(MODELS))


async def test_now_a_job_for_this_one_and_now_for_that(redis_url: str) -> None:
    """While all the others wait, and this one with them."""
    async with ManyModels(redis_url) as service, AsyncClient(redis_url) as client:
        await waiting_together(service)
        for job in one_each():
            assert (await client.run(job, timeout_s=5)).unwrap() == job.model
        await assert_nothing_lost(client, 1)


async def test_connections_do_not_grow_with_the_models(redis_url: str) -> None:
    """Of readers: one for sixteen models that have no jobs; and a few for commands, whoever gives them."""
    redis = commands(redis_url)
    async with ManyModels(redis_url) as service:

        async def wait_in_two_reads() -> bool:
            return 0 < int((await redis.info("clients"))["blocked_clients"]) <= -(-len(MODELS) // 16)

        await waiting_together(service)
        await eventually(wait_in_two_reads)
        assert service.routers["m0"]._redis is service.routers["m19"]._redis
    await redis.aclose()


async def test_what_comes_up_now_and_then_is_seen_to(redis_url: str) -> None:
    """Of each model: attempts that are due, what is called off, and a lost group."""
    gate = GatedEngine()
    forming = FormingPolicy(max_jobs=1)
    async with ManyModels(redis_url, {"m7": gate}, forming=forming) as service, AsyncClient(redis_url) as client:
        stuck = await client.submit_many([Job(model="m7", input=n) for n in range(3)])
        await eventually(lambda: service.routers["m7"].counts.read == 3)
        assert await client.cancel(stuck[2]) is CancelOutcome.REQUESTED
        assert (await client.result(stuck[2], timeout_s=5)).status is Status.CANCELLED
        gate.open()
        for lane in keys_of("m9").lanes:
            await execute(client._redis, "DEL", lane)
        for model in ("m7", "m8", "m9"):
            assert (await client.run(Job(model=model, input="x"), timeout_s=5)).ok


async def test_attempts_that_are_due_again(redis_url: str) -> None:
    async with HandService(redis_url, "m3") as hand, AsyncClient(redis_url) as client:
        receipt = await client.submit(Job(model="m3", input="x", retry=RetryPolicy(attempts=3, backoff_s=0.01)))
        [entry] = await hand.take()
        await retry(hand.redis, "m3", [GiveBack(entry.lane, entry.entry_id, entry.text, 50)])
        async with ManyModels(redis_url):
            assert (await client.result(receipt, timeout_s=5)).attempt == 2


@pytest.mark.slow
async def test_the_jobs_of_a_dead_process_are_taken_over(redis_url: str) -> None:
    """Of all its models, by another that has them, too."""
    gates: dict[str, Engine] = {name: GatedEngine() for name in MODELS}
    async with AsyncClient(redis_url) as client:
        dying = ManyModels(redis_url, gates, consumer="dying")
        await dying.__aenter__()
        receipts = await client.submit_many(one_each())
        await eventually(lambda: all(router.counts.read for router in dying.routers.values()))
        async with ManyModels(redis_url, consumer="lives") as living:
            await dying.crash()
            assert all([(await client.result(receipt, timeout_s=10)).ok for receipt in receipts])
            assert sum(router.counts.reaped for router in living.routers.values()) == len(MODELS)
        await assert_nothing_lost(client, 1)
    for gate in gates.values():
        gate.open()  # type: ignore[attr-defined]
    await dying.end()


# -- what is lost on its way ------------------------------------------------------------------------------------------


async def test_the_reply_to_a_read_of_many_models_is_lost(redis_url: str) -> None:
    """With jobs of one model in it, or of several: each looks again at what is pending for it."""
    async with (
        Proxy(redis_url) as proxy,
        ManyModels(proxy.url) as service,
        AsyncClient(redis_url) as client,
    ):
        await waiting_together(service)
        proxy.drop_reply_to(*["XREADGROUP"] * 3)
        results = [result async for result in client.map(one_each())]
        assert [result.unwrap() for result in results] == MODELS
        assert proxy.dropped == 3
        await assert_nothing_lost(client, 1)


async def test_a_server_that_is_away_for_a_moment(redis_url: str) -> None:
    """All connections are cut, again and again, while jobs come."""
    async with Proxy(redis_url) as proxy, ManyModels(proxy.url), AsyncClient(redis_url) as client:
        receipts = []
        for start in range(0, len(MODELS), 8):
            receipts += await client.submit_many(one_each()[start : start + 8])
            proxy.cut()
            await asyncio.sleep(0.05)
        assert [(await client.result(receipt, timeout_s=10)).unwrap() for receipt in receipts] == MODELS
        await assert_nothing_lost(client, 1)


# -- one of many ------------------------------------------------------------------------------------------------------


async def test_the_fault_of_one_is_not_the_others(redis_url: str) -> None:
    """It ends, though it waits with them; they look again, and go on."""
    async with ManyModels(redis_url) as service, AsyncClient(redis_url) as client:
        await waiting_together(service)

        def faulty(now_s: float) -> list[Any]:
            raise ZeroDivisionError("a bug of ours")

        service.routers["m5"].scheduler.former.expired = faulty  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(service.tasks["m5"], 5)
        others = [job for job in one_each() if job.model != "m5"]
        assert all([result.ok async for result in client.map(others)])
        assert not any(task.done() for name, task in service.tasks.items() if name != "m5")


async def test_one_that_ends_leaves_the_others_to_go_on(redis_url: str) -> None:
    async with ManyModels(redis_url) as service, AsyncClient(redis_url) as client:
        service.routers["m5"].stop()
        await asyncio.wait_for(service.tasks["m5"], 5)
        assert all([(await client.run(job, timeout_s=5)).ok for job in one_each() if job.model != "m5"])


async def test_a_process_whose_routers_have_left_does_nothing_more(redis_url: str) -> None:
    async with ManyModels(redis_url) as service:
        pass
    assert service.process._clock is None
    assert (service.process._rounds, service.process._tasks) == ({}, {})


async def test_a_fault_in_the_rounds_is_everybody_s(redis_url: str) -> None:
    """A bug is not swallowed: Serve starts another process."""
    async with ManyModels(redis_url) as service:

        async def faulty() -> None:
            raise ZeroDivisionError("a bug of ours")

        service.process._rounds[""]._once = faulty  # type: ignore[method-assign]
        for task in service.tasks.values():
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(task, 5)
