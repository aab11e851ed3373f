"""What happens when routers and replicas die, and when jobs fail: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace import AsyncClient, CancelOutcome, FailureCode, Job, RetryPolicy, Status, scripts
from headrace.keys import GROUP, keys_of
from headrace.messages import Batch
from headrace.server.connection import execute
from headrace_cluster.pools.port import ReplicaLostError
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.replicas.replica import Replica
from support.bad_days import GatedEngine, RecordingEngine, SlowEngine
from support.by_hand import HandService
from support.proxy import Proxy
from support.service import PlainService
from support.waiting import eventually

MODEL = "m"


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, "call_timeout_s": 5.0, **fields})


def jobs(count: int, **fields: Any) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}", **fields) for n in range(count)]


async def assert_all_accounted_for(client: AsyncClient, submitted: int) -> None:
    audit = await client.audit(MODEL)
    assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (submitted, submitted, 0, 0, 0)


async def crash(service: PlainService) -> None:
    """As kill -9: nothing is given back, and the heart stands still."""
    service.router._give_back = _nothing  # type: ignore[method-assign]
    await service.lease.stop()
    assert service._task is not None
    service._task.cancel()
    await asyncio.wait({service._task})


async def _nothing() -> None:
    return


class FlakyEngine(EchoEngine):
    """Fails each job a number of times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.tries: dict[Any, int] = {}

    def run(self, items: Any) -> list[Any]:
        return [self._answer(item) for item in items]

    def _answer(self, item: Prepared) -> Any:
        tries = self.tries[item.data] = self.tries.get(item.data, 0) + 1
        if tries <= self.failures:
            return ItemError(FailureCode.ENGINE_FAILED, f"for the {tries}. time", retryable=True)
        return item.data


# -- routers -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_dead_router_s_jobs_are_taken_over(redis_url: str) -> None:
    """Within a lease and a sweep, by a router that lives."""
    stuck = GatedEngine()
    dying = PlainService(redis_url, MODEL, stuck, policy=policy(), consumer="dying")
    async with AsyncClient(redis_url) as client:
        await dying.__aenter__()
        receipts = await client.submit_many(jobs(100))
        await eventually(lambda: dying.router.counts.read == 100)
        async with PlainService(redis_url, MODEL, policy=policy(), consumer="lives") as living:
            await crash(dying)
            started_s = asyncio.get_running_loop().time()
            results = [await client.result(receipt, timeout_s=10) for receipt in receipts]
            took_s = asyncio.get_running_loop().time() - started_s
            stuck.open()
            assert living.router.counts.reaped == 100
        assert [result.unwrap() for result in results] == list(range(100))
        assert took_s < 6
        await assert_all_accounted_for(client, 100)
    for replica in dying.replicas.values():
        await replica.close()


async def test_jobs_are_answered_though_the_list_of_them_was_lost_on_its_way(redis_url: str) -> None:
    """The server had made them the router's, and the router was never told."""
    async with HandService(redis_url, MODEL) as dead, Proxy(redis_url) as proxy, AsyncClient(redis_url) as client:
        receipts = await client.submit_many(jobs(10))
        await dead.take()
        await scripts.load(dead.redis)  # else the reply that is dropped says that there is no such script
        proxy.drop_reply_to(scripts.REAP.sha)
        async with PlainService(proxy.url, MODEL, policy=policy(), consumer="lives"):
            results = [await client.result(receipt, timeout_s=10) for receipt in receipts]
        assert proxy.dropped == 1
        assert [result.unwrap() for result in results] == list(range(10))
        await assert_all_accounted_for(client, 10)


async def test_a_router_that_ends_in_order_gives_back_what_it_could_not_finish(redis_url: str) -> None:
    """The next one has it at once, and not after a lease."""
    stuck = GatedEngine()
    ending = PlainService(redis_url, MODEL, stuck, policy=policy(), consumer="ending")
    async with AsyncClient(redis_url) as client:
        await ending.__aenter__()
        receipts = await client.submit_many(jobs(100))
        await eventually(lambda: ending.router.counts.read == 100)
        async with PlainService(redis_url, MODEL, policy=policy(), consumer="lives") as living:
            living.lease._state._unbroken_since_s = float("-inf")  # however young the server is
            assert ending._task is not None
            ending._task.cancel()
            await asyncio.wait({ending._task})
            results = [await client.result(receipt, timeout_s=2) for receipt in receipts]
        stuck.open()
        assert all(result.ok for result in results)
        await assert_all_accounted_for(client, 100)
    await ending.lease.stop()
    for replica in ending.replicas.values():
        await replica.close()


async def test_a_lapsed_router_looks_again_at_what_it_holds(redis_url: str) -> None:
    """What others took over meanwhile is theirs; what is still its own it answers."""
    engine = GatedEngine()
    async with AsyncClient(redis_url) as client:
        async with PlainService(
            redis_url, MODEL, engine, policy=policy(forming=FormingPolicy(max_jobs=4)), consumer="a"
        ) as service:
            receipts = await client.submit_many(jobs(20))
            await eventually(lambda: service.router.counts.read >= 12)
            held = len(service.router.held)
            service.lease._state.lapses += 1
            await eventually(lambda: service.router.counts.read > held)
            engine.open()
            assert all([(await client.result(receipt, timeout_s=5)).ok for receipt in receipts])
        await assert_all_accounted_for(client, 20)


# -- poison --------------------------------------------------------------------------------------------------------


class Mortal:
    """Dies of certain inputs, and is alive again for the next call.

    Args:
        replica: what runs.
        poison: ids of the jobs that it dies of.
        died: is told how often it has died by then.
    """

    def __init__(
        self, replica: Replica, poison: set[str], *, died: Callable[[int], None] = lambda _deaths: None
    ) -> None:
        self.replica = replica
        self.poison = poison
        self.deaths = 0
        self._died = died

    async def run(self, message: bytes) -> bytes:
        batch = Batch.from_bytes(message)
        if self.poison & {entry.envelope.job_id for entry in batch.entries}:
            self.deaths += 1
            self._died(self.deaths)
            raise ReplicaLostError("it died of it")
        return await self.replica.run(message)


async def test_a_poison_job_is_found_and_set_aside(redis_url: str) -> None:
    """All the others are answered; the letter keeps what it was."""
    service = PlainService(redis_url, MODEL, policy=policy())

    def reborn(deaths: int) -> None:
        """Each life of a replica has a name of its own."""
        service.pool.change({f"replica-{deaths}": mortal})

    mortal = Mortal(service.replicas["replica-0"], {"job-17"}, died=reborn)
    service.pool.replicas = {"replica-0": mortal}
    service.router.scheduler.slots._suspension_s = 0.01  # type: ignore[attr-defined]
    async with service, AsyncClient(redis_url) as client:
        results = {result.id: result async for result in client.map(jobs(64))}
        await assert_all_accounted_for(client, 64)
        [(_, letter)] = await execute(client._redis, "XRANGE", keys_of(MODEL).dead_letters, "-", "+")

    dead = results.pop("job-17")
    assert dead.status is Status.DEAD
    assert dead.failure is not None
    assert dead.failure.code == FailureCode.POISON
    assert all(result.ok for result in results.values())
    assert mortal.deaths <= 8 + 1  # the other batch that its replica had is suspected first
    assert b" job-17 " in letter[letter.index(b"e") + 1]


async def test_what_one_router_found_out_the_next_one_knows(redis_url: str) -> None:
    """A job that had failed alone once is convicted by its second failure, though the first router died between."""
    first = PlainService(redis_url, MODEL, policy=policy(), consumer="first")
    mortal = Mortal(first.replicas["replica-0"], {"job-0"})
    first.pool.replicas = {"replica-0": mortal}
    first.router.scheduler.slots._suspension_s = 60  # type: ignore[attr-defined] # so that it dies first
    async with AsyncClient(redis_url) as client:
        await first.__aenter__()
        receipt = await client.submit(jobs(1)[0])
        await eventually(lambda: _blamed(client))
        await crash(first)
        second = PlainService(redis_url, MODEL, policy=policy(), consumer="second")
        second.pool.replicas = {"replica-0": mortal}
        async with second:
            result = await client.result(receipt, timeout_s=10)
        assert (result.status, mortal.deaths) == (Status.DEAD, 2)
    await first.replicas["replica-0"].close()


async def _blamed(client: AsyncClient) -> bool:
    pending = await execute(client._redis, "XPENDING", keys_of(MODEL).lanes[1], GROUP, "-", "+", 1)
    return bool(pending) and pending[0][3] >= scripts.LONE_FAILURE


# -- retries -------------------------------------------------------------------------------------------------------


async def test_a_job_is_tried_again_as_its_policy_says(redis_url: str) -> None:
    engine = FlakyEngine(2)
    retry = RetryPolicy(attempts=3, backoff_s=0.01)
    async with PlainService(redis_url, MODEL, engine, policy=policy()) as service, AsyncClient(redis_url) as client:
        results = [result async for result in client.map(jobs(20, retry=retry))]
        await assert_all_accounted_for(client, 20)

    assert [(result.unwrap(), result.attempt) for result in results] == [(n, 3) for n in range(20)]
    assert service.router.counts.delayed == 40


async def test_when_the_attempts_are_used_up_it_is_dead(redis_url: str) -> None:
    engine = FlakyEngine(100)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        result = await client.run(jobs(1, retry=RetryPolicy(attempts=2, backoff_s=0))[0], timeout_s=5)
        audit = await client.audit(MODEL)

    assert result.status is Status.DEAD
    assert result.attempt == 2
    assert (audit.dead, audit.dead_letters, audit.lost) == (1, 1, 0)


async def test_what_the_policy_does_not_name_ends_at_once(redis_url: str) -> None:
    engine = FlakyEngine(100)
    retry = RetryPolicy(attempts=5, on=[FailureCode.POOL_FAILED])
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        plain, other = [result async for result in client.map([*jobs(1), Job(model=MODEL, input="x", retry=retry)])]

    assert plain.status is other.status is Status.ERROR
    assert engine.tries == {0: 1, "x": 1}


async def test_a_job_that_is_called_off_between_attempts_has_no_other(redis_url: str) -> None:
    async with (
        PlainService(redis_url, MODEL, FlakyEngine(100), policy=policy()),
        AsyncClient(redis_url) as client,
    ):
        receipt = await client.submit(jobs(1, retry=RetryPolicy(attempts=9, backoff_s=60))[0])
        await eventually(lambda: _delayed(client))
        assert await client.cancel(receipt) is CancelOutcome.CANCELLED
        assert (await client.result(receipt, timeout_s=5)).status is Status.CANCELLED
        await assert_all_accounted_for(client, 1)


async def _delayed(client: AsyncClient) -> bool:
    return (await client.audit(MODEL)).delayed == 1


# -- calling off ---------------------------------------------------------------------------------------------------


async def test_a_job_that_a_router_holds_is_called_off(redis_url: str) -> None:
    engine = RecordingEngine()
    gate = GatedEngine()
    forming = FormingPolicy(max_jobs=1)
    async with AsyncClient(redis_url) as client:
        async with PlainService(redis_url, MODEL, gate, policy=policy(forming=forming)) as service:
            receipts = await client.submit_many(jobs(3))
            await eventually(lambda: service.router.counts.read == 3)
            assert await client.cancel(receipts[2]) is CancelOutcome.REQUESTED
            result = await client.result(receipts[2], timeout_s=5)
            gate.open()
        assert result.status is Status.CANCELLED
        await assert_all_accounted_for(client, 3)
    assert engine.ran == []


async def test_a_request_outlives_the_router(redis_url: str) -> None:
    """It was made while nobody was there; whoever takes the job over finds it in its record."""
    async with PlainService(redis_url, MODEL):
        pass
    async with AsyncClient(redis_url) as client:
        receipt = await client.submit(jobs(1)[0])
        await execute(client._redis, "XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", keys_of(MODEL).lanes[1], ">")
        assert await client.cancel(receipt) is CancelOutcome.REQUESTED
        await execute(client._redis, "DEL", keys_of(MODEL).cancels)
        async with PlainService(redis_url, MODEL, policy=policy(), consumer="lives") as service:
            service.lease._state._unbroken_since_s = float("-inf")
            assert (await client.result(receipt, timeout_s=5)).status is Status.CANCELLED
        await assert_all_accounted_for(client, 1)


# -- fairness ------------------------------------------------------------------------------------------------------


async def test_one_job_behind_a_flood_starts_within_three_batches(redis_url: str) -> None:
    """A floods with ten thousand, B sends one."""
    engine = SlowEngine(0.01)
    async with AsyncClient(redis_url) as client:
        async with PlainService(redis_url, MODEL, engine, policy=policy()) as service:
            await client.submit_many(Job(model=MODEL, input=n, tenant="a", inbox="a") for n in range(10_000))
            await eventually(lambda: service.router.counts.batches >= 3)
            before = service.router.counts.batches
            receipt = await client.submit(Job(model=MODEL, input="b", tenant="b"))
            submitted_at = service.router.counts.batches
            await client.result(receipt, timeout_s=10)
            answered_at = service.router.counts.batches
            assert before < 100, "the flood was over before it began"
            # two batches were out, three may go before it, and its own
            assert answered_at - submitted_at <= 2 + 3 + 1
            await eventually(lambda: _idle(client), within_s=60)
        await assert_all_accounted_for(client, 10_001)


async def _idle(client: AsyncClient) -> bool:
    return (await client.audit(MODEL)).live == 0
