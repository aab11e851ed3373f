"""A model in several shards: one name for producers, several in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from headrace import AsyncClient, CancelOutcome, Client, Job, JobState, ShardedModelError
from headrace.models.shards import shard_names, shard_of
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.service import PlainService

MODEL = "hot"
SHARDS = 3


@pytest.fixture
async def services(redis_url: str) -> AsyncIterator[list[PlainService]]:
    """A router for each shard."""
    policy = RoutingPolicy(block_ms=50, shards=SHARDS)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(PlainService(redis_url, name, policy=policy))
            for name in shard_names(MODEL, SHARDS)
        ]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as connected:
        yield connected


def jobs(count: int, **fields: Any) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}", **fields) for n in range(count)]


@pytest.mark.usefixtures("services")
async def test_a_producer_need_not_know(client: AsyncClient) -> None:
    """It names the model, and its jobs are spread by their ids; the audit is of all shards."""
    results = [result async for result in client.map(jobs(300))]
    assert [result.unwrap() for result in results] == list(range(300))
    assert {result.model for result in results} == set(shard_names(MODEL, SHARDS))
    of_all = await client.audit(MODEL)
    of_each = [await client.audit(name) for name in shard_names(MODEL, SHARDS)]
    assert (of_all.submitted, of_all.ok, of_all.live) == (300, 300, 0)
    assert all(audit.submitted > 50 for audit in of_each)


@pytest.mark.usefixtures("services")
async def test_an_id_is_known_where_it_was_submitted(client: AsyncClient) -> None:
    """So it is not run twice, and is found by its id and the model's name."""
    receipt = await client.submit(jobs(1)[0])
    assert (await client.submit(jobs(1)[0])).duplicate
    assert (await client.result("job-0", model=MODEL, timeout_s=10)).unwrap() == 0
    assert (await client.status("job-0", model=MODEL)).state is JobState.OK
    assert await client.cancel("job-0", model=MODEL) is CancelOutcome.ENDED
    assert receipt.model == shard_of(MODEL, "job-0", SHARDS)


async def test_many_are_cancelled_in_their_shards(client: AsyncClient, services: list[PlainService]) -> None:
    """Outcomes come in the order of the ids."""
    [result async for result in client.map(jobs(10))]
    ids = [f"job-{n}" for n in range(9, -1, -1)]
    outcomes = await client.cancel_many([*ids, "never-submitted"], model=MODEL)
    assert outcomes == [CancelOutcome.ENDED] * 10 + [CancelOutcome.UNKNOWN]
    assert sum(service.router.counts.answered for service in services) == 10


@pytest.mark.usefixtures("services")
async def test_an_inbox_is_one_shard_s(client: AsyncClient) -> None:
    """A consumer is told to name it, and then has its part."""
    await client.submit_many(jobs(30, inbox="box"))
    with pytest.raises(ShardedModelError, match="name it, from hot#0 to hot#2"):
        await anext(client.results("box", model=MODEL))
    with pytest.raises(ShardedModelError, match="name it, from hot#0 to hot#2"):
        await client.trim("box", model=MODEL, through="1")
    found: list[str] = []
    for name in await client.shards(MODEL):
        part = [result async for result in client.results("box", model=name, idle_s=0.5)]
        assert await client.trim("box", model=name, through=part[-1].cursor) == len(part)
        found += [result.id for result in part]
    assert sorted(found) == sorted(job.id for job in jobs(30))


@pytest.mark.usefixtures("services")
async def test_who_names_a_shard_gets_it(client: AsyncClient) -> None:
    result = await client.run(Job(model="hot#1", input="x"), timeout_s=10)
    assert (result.model, result.unwrap()) == ("hot#1", "x")


def test_ids_spread_evenly() -> None:
    """To within a tenth, for UUIDs as for counted names."""
    counts = [0] * 8
    for number in range(80_000):
        counts[int(shard_of("m", f"order-{number}", 8)[2:])] += 1
    assert max(counts) - min(counts) < 1_000
    assert shard_of("m", "whatever", 1) == "m"


@pytest.mark.usefixtures("services")
async def test_the_synchronous_client(redis_url: str) -> None:
    import asyncio

    def run() -> list[Any]:
        with Client(redis_url) as plain:
            return [result.unwrap() for result in plain.map(jobs(20))]

    assert await asyncio.to_thread(run) == list(range(20))
