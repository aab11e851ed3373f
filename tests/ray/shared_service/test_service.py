"""The whole way of a job, through real actors."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from headrace import AsyncClient, InvalidInputError, Job, JobState, Status, UnknownModelError
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.local import LocalService
from headrace_workers.engines.encoder import EncoderEngine
from support.waiting import eventually

pytestmark = pytest.mark.ray


async def test_many_jobs_come_back_in_order(client: AsyncClient) -> None:
    """Two thousand jobs over two replicas, each answered once."""
    jobs = [Job(model="echo", input=n) for n in range(2_000)]
    assert [result.unwrap() async for result in client.map(jobs)] == list(range(2_000))
    audit = await client.audit("echo")
    assert (audit.lost, audit.doubled, audit.live) == (0, 0, 0)


async def test_both_replicas_work(client: AsyncClient, service: LocalService) -> None:
    """The router gives batches to whoever is free."""
    results = [result async for result in client.map(_sleepers(40))]
    assert len({result.unwrap() for result in results}) == 2


def _sleepers(count: int) -> list[Job]:
    return [Job(model="fragile", input="sleep:0.02") for _ in range(count)]


async def test_an_embedding_is_what_the_engine_says_in_process(client: AsyncClient) -> None:
    """Bit for bit: neither the batch nor the way through Redis changes an answer."""
    texts = [f"text number {n} " + "and more " * (n % 30) for n in range(100)]
    results = [result async for result in client.map(Job(model="minilm", input=text) for text in texts)]
    engine = EncoderEngine(str(packaged_encoder()))
    for text, result in list(zip(texts, results, strict=True))[::10]:
        alone = engine.run(engine.prepare([(text, {})]))[0]  # type: ignore[arg-type]
        assert result.unwrap().data == alone.data
    assert results[0].variant == "int8"
    assert results[0].input_tokens > 3


@pytest.mark.parametrize(
    ("value", "params", "code"),
    [
        ("", {}, "invalid_input"),
        ("   ", {}, "invalid_input"),
        (7, {}, "invalid_input"),
        (["a", "b"], {}, "invalid_input"),
        ("word " * 5_000, {}, "input_too_long"),
        ("fine", {"colour": "red"}, "invalid_params"),
        ("fine", {"normalize": "yes"}, "invalid_params"),
    ],
)
async def test_bad_input_is_that_jobs_error_alone(
    client: AsyncClient, value: object, params: dict[str, object], code: str
) -> None:
    """Its neighbours in the same batch are answered."""
    good = [Job(model="minilm", input=f"good {n}") for n in range(8)]
    jobs = [*good[:4], Job(model="minilm", input=value, params=params), *good[4:]]
    results = [result async for result in client.map(jobs)]
    assert [result.ok for result in results] == [True] * 4 + [False] + [True] * 4
    assert results[4].failure is not None
    assert results[4].failure.code == code
    with pytest.raises(InvalidInputError):
        results[4].unwrap()


async def test_an_engine_that_raises_fails_the_culprit_alone(client: AsyncClient) -> None:
    """A batch that fails as a whole is run again job by job."""
    wishes = ["a", "raise", "b", "refuse"]
    results = [result async for result in client.map(Job(model="fragile", input=wish) for wish in wishes)]
    assert [result.status for result in results] == [Status.OK, Status.ERROR, Status.OK, Status.ERROR]
    assert results[1].failure is not None
    assert results[1].failure.code == "engine_failed"


async def test_a_killed_replica_loses_nothing(client: AsyncClient) -> None:
    """What it was running is given to the other one; Serve starts another in its place."""
    victim = (await client.run(Job(model="fragile", input="who"), timeout_s=10)).unwrap()
    receipts = await client.submit_many(_sleepers(200))
    os.kill(victim, signal.SIGKILL)
    results = [await client.result(receipt, timeout_s=60) for receipt in receipts]
    assert all(result.ok for result in results)
    assert victim not in {result.unwrap() for result in results[50:]}

    async def two_again() -> bool:
        answers = [result.unwrap() async for result in client.map(_sleepers(20))]
        return len(set(answers)) == 2

    await eventually(two_again, within_s=60)


async def test_a_killed_router_is_replaced(client: AsyncClient, service: LocalService) -> None:
    """Serve starts another, and jobs go on."""
    pid = (await asyncio.to_thread(service.counts))["echo"]["pid"]
    os.kill(pid, signal.SIGKILL)
    result = await client.run(Job(model="echo", input="still here"), timeout_s=60)
    assert result.unwrap() == "still here"
    assert (await client.status(result.id, model="echo")).state is JobState.OK


async def test_deadlines_end_jobs_that_wait(client: AsyncClient, service: LocalService) -> None:
    """A job that cannot start in time is answered as expired, not run late."""
    read = (await asyncio.to_thread(service.counts))["fragile"]["read"]
    blockers = await client.submit_many(Job(model="fragile", input="sleep:0.5") for _ in range(16))

    async def all_read() -> bool:
        counts = await asyncio.to_thread(service.counts)
        return bool(counts["fragile"]["read"] == read + 16)

    await eventually(all_read)  # so that every slot is taken
    late = await client.run(Job(model="fragile", input="late", deadline_s=0.05), timeout_s=30)
    assert late.status is Status.EXPIRED
    for receipt in blockers:
        assert (await client.result(receipt, timeout_s=30)).ok


async def test_unknown_models_are_refused_at_once(client: AsyncClient) -> None:
    """A typing error does not wait for an answer that never comes."""
    with pytest.raises(UnknownModelError, match="no service has registered"):
        await client.submit(Job(model="minilmm", input="x"))


async def test_shards_share_their_replicas(client: AsyncClient, service: LocalService) -> None:
    """Producers name the model; each shard has a router, and all of them the one replica."""
    results = [result async for result in client.map(Job(model="hot", input=n) for n in range(200))]
    assert [result.unwrap() for result in results] == list(range(200))

    async def all_counted() -> bool:
        counts = await asyncio.to_thread(service.counts)
        shards = [counts[name] for name in await client.shards("hot")]
        return [shard["replicas"] for shard in shards] == [1, 1] and sum(shard["answered"] for shard in shards) == 200

    await eventually(all_counted)


def test_a_second_service_in_one_process(service: LocalService) -> None:
    """It is refused, and the first goes on: Ray knows one cluster a process, and would give up the first."""
    with pytest.raises(ConnectionError, match=r"call ray.shutdown\(\) first"), LocalService(service.config):
        pass
    assert service.counts()
