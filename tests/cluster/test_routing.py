"""A router at work, with everything real but Ray: batches, priorities, credit, bad jobs, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from headrace import AsyncClient, FailureCode, Job, JobState
from headrace.codec import pack
from headrace.errors import EngineFailedError
from headrace.keys import GROUP, keys_of
from headrace.models.registry import Limits
from headrace.server.connection import commands, execute
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.engines.echo import EchoEngine
from support.bad_days import GatedEngine, PickyEngine, RecordingEngine, SlowEngine
from support.local_pool import LocalPool
from support.raw import envelope, write_entry
from support.routing import MODEL, assert_all_accounted_for, idle, jobs, outputs_of, policy
from support.service import PlainService, leased
from support.waiting import eventually

# -- batches --------------------------------------------------------------------------------------------------------


async def test_a_lone_job_is_a_batch_of_one(redis_url: str) -> None:
    """It waits for nobody."""
    engine = RecordingEngine()
    async with PlainService(redis_url, MODEL, engine), AsyncClient(redis_url) as client:
        for job in jobs(5):
            assert (await client.run(job, timeout_s=5)).ok

    assert engine.batches == [1] * 5


async def test_batches_grow_under_load(redis_url: str) -> None:
    """What comes while the replica is busy goes together."""
    engine = SlowEngine(0.01)
    async with PlainService(redis_url, MODEL, engine), AsyncClient(redis_url) as client:
        assert await outputs_of(client, jobs(1000)) == list(range(1000))
        await assert_all_accounted_for(client, 1000)

    assert max(engine.batches) == 64
    assert len(engine.batches) < 60


async def test_batches_keep_within_the_budget(redis_url: str) -> None:
    """The former's budgets are the router's."""
    engine = SlowEngine(0.002)
    forming = FormingPolicy(max_jobs=10)
    async with PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)), AsyncClient(redis_url) as client:
        await outputs_of(client, jobs(200))

    assert max(engine.batches) <= 10
    assert sum(engine.batches) == 200


async def test_a_job_larger_than_a_batch_runs_alone(redis_url: str) -> None:
    """Its payload is more than a message is meant to carry, and it is answered all the same."""
    engine = GatedEngine()
    forming = FormingPolicy(max_bytes=100_000)
    async with PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)), AsyncClient(redis_url) as client:
        big = [Job(model=MODEL, input=letter * 300_000, id=letter) for letter in "ab"]
        receipts = await client.submit_many([*jobs(10), *big, Job(model=MODEL, input="last")])
        engine.open()
        results = [await client.result(receipt, timeout_s=10) for receipt in receipts]

    assert [result.ok for result in results] == [True] * 13
    assert engine.batches.count(1) >= 2


async def test_the_token_estimate_is_learned_from_the_engine(redis_url: str) -> None:
    """An echo's unit of work is one job, whatever its size."""
    async with PlainService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        await outputs_of(client, [Job(model=MODEL, input="x" * 1000) for _ in range(2000)])

        assert service.router.estimate.tokens(1000) < 30


async def test_two_replicas_share_the_work(redis_url: str) -> None:
    """An idle one is preferred to a busy one."""
    engines = SlowEngine(0.01), SlowEngine(0.01)
    async with PlainService(redis_url, MODEL, *engines), AsyncClient(redis_url) as client:
        await outputs_of(client, jobs(600))

    assert sum(engines[0].batches) + sum(engines[1].batches) == 600
    assert min(sum(engine.batches) for engine in engines) > 150


async def test_jobs_of_one_millisecond_in_two_lanes_are_two_jobs(redis_url: str) -> None:
    """Each lane numbers its own entries: the same entry id in two lanes means nothing."""
    engine = GatedEngine()
    async with PlainService(redis_url, MODEL, engine) as service, AsyncClient(redis_url) as client:
        redis = commands(redis_url)
        for lane in range(3):
            await write_entry(redis, MODEL, priority=lane, entry_id="1-1", text=envelope(f"lane-{lane}"))
        await redis.aclose()
        await eventually(lambda: service.router.counts.read == 3)
        engine.open()

        results = [result async for result in client.results("raw", model=MODEL, idle_s=0.3)]

    assert {result.id for result in results} == {"lane-0", "lane-1", "lane-2"}


async def test_all_lanes_are_served_at_once(redis_url: str) -> None:
    """Jobs of every priority, submitted as fast as can be, are all answered."""
    mixed = [
        Job(model=MODEL, input=n, priority=("high", "normal", "low")[n % 3], tenant=f"tenant-{n % 5}")
        for n in range(600)
    ]
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as client:
        assert await outputs_of(client, mixed) == list(range(600))
        await assert_all_accounted_for(client, 600)


async def test_a_flood_in_one_lane_leaves_the_others_visible(redis_url: str) -> None:
    """Thousands of low jobs wait; a high one is answered among the first of them."""
    engine = SlowEngine(0.005)
    forming = FormingPolicy(max_jobs=8)
    async with PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)), AsyncClient(redis_url) as client:
        await client.submit_many(jobs(1500, priority="low"))
        await client.run(Job(model=MODEL, input="urgent", priority="high"), timeout_s=5)
        done = engine.ran.index("urgent")
        engine.run_s = 0
        await eventually(lambda: idle(client))

    assert done < 800


# -- jobs at fault ----------------------------------------------------------------------------------------------------


async def test_an_engine_that_raises_fails_only_the_culprit(redis_url: str) -> None:
    """The batch is run again one by one; only the poisoned job gets the error."""
    engine = PickyEngine()
    values = ["good"] * 20 + ["poison"] + ["good"] * 20
    async with PlainService(redis_url, MODEL, engine), AsyncClient(redis_url) as client:
        results = [result async for result in client.map([Job(model=MODEL, input=value) for value in values])]

        assert [result.ok for result in results] == [value == "good" for value in values]
        assert results[20].failure is not None
        assert results[20].failure.code == FailureCode.ENGINE_FAILED
        await assert_all_accounted_for(client, 41)


class RaisingWhilePreparing(EchoEngine):
    """An engine whose author forgot that inputs can be wrong."""

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        for value, _ in requests:
            value.upper()
        return super().prepare(requests)


async def test_an_engine_that_raises_while_preparing_fails_only_the_culprit(redis_url: str) -> None:
    """Preparing is isolated as running is."""
    values = ["a", "b", 7, "c"]
    async with PlainService(redis_url, MODEL, RaisingWhilePreparing()), AsyncClient(redis_url) as client:
        results = [result async for result in client.map([Job(model=MODEL, input=value) for value in values])]

    assert [result.ok for result in results] == [True, True, False, True]
    with pytest.raises(EngineFailedError, match="AttributeError"):
        results[2].unwrap()


class Misbehaving(EchoEngine):
    """Gives what its inputs ask for, be it what an engine must never give."""

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        outputs: list[Any] = []
        for item in items:
            match item.data:
                case "object":
                    outputs.append(object())
                case "surrogate":
                    outputs.append(ItemError(FailureCode.ENGINE_FAILED, "lone \ud800", hint="\udfff"))
                case "huge":
                    outputs.append("x" * (1 << 20))
                case "nothing":
                    return []
                case _:
                    outputs.append(item.data)
        return outputs


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("object", FailureCode.ENGINE_FAILED),
        ("surrogate", FailureCode.ENGINE_FAILED),
        ("huge", FailureCode.OUTPUT_TOO_LARGE),
        ("nothing", FailureCode.ENGINE_FAILED),
    ],
)
async def test_an_output_that_cannot_be_an_answer_fails_that_job_alone(
    redis_url: str, bad: str, code: FailureCode
) -> None:
    """Whatever an engine gives, everybody gets a terminal entry."""
    async with PlainService(redis_url, MODEL, Misbehaving()), AsyncClient(redis_url) as client:
        values = ["fine", bad, "fine too"]
        results = [result async for result in client.map([Job(model=MODEL, input=value) for value in values])]

    assert [result.ok for result in results] == [True, False, True]
    assert results[1].failure is not None
    assert results[1].failure.code == code


async def test_an_undecodable_payload_fails_that_job_alone(redis_url: str) -> None:
    """A producer in another language may pack nonsense."""
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as client:
        redis = commands(redis_url)
        for n, payload in enumerate([b"\xc1", pack({"input": "fine"}), pack([1]), b"", b"\x91" * 3000]):
            await write_entry(redis, MODEL, text=envelope(f"raw-{n}"), payload=payload)
        await redis.aclose()
        results = {result.id: result async for result in client.results("raw", model=MODEL, idle_s=0.4)}

    assert [results[f"raw-{n}"].ok for n in range(5)] == [False, True, False, False, False]
    assert {result.failure.code for result in results.values() if result.failure} == {FailureCode.UNDECODABLE}


async def test_a_newer_wire_version_is_an_error_for_that_job_alone(redis_url: str) -> None:
    """The answer says so in the version that the job was submitted in; the record says it to everybody."""
    async with PlainService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        redis = commands(redis_url)
        await write_entry(redis, MODEL, text=envelope("newer", version=2) + b" more words")
        await client.run(Job(model=MODEL, input="mine"), timeout_s=5)
        await eventually(lambda: service.router.counts.refused == 1 and not len(service.router.held))

        assert (await client.status("newer", model=MODEL)).state is JobState.ERROR
        [(_, fields)] = await execute(redis, "XRANGE", keys_of(MODEL).inbox("raw"), "-", "+")
        await redis.aclose()
        assert fields[1] == b"2 newer error 1"
        assert b"unsupported_version" in fields[3]
        await assert_all_accounted_for(client, 2)


MALFORMED: dict[str, dict[str, bytes]] = {
    "no envelope": {"p": b""},
    "no payload": {"e": envelope("x")},
    "other fields": {"a": b"b"},
    "an empty envelope": {"e": b"", "p": b""},
    "few words": {"e": b"1 id inbox", "p": b""},
    "not ASCII": {"e": "1 é".encode() + envelope("x")[3:], "p": b""},
    "a number that is none": {"e": envelope("x", deadline="soon"), "p": b""},
    "a number of 300 digits": {"e": envelope("x", deadline="9" * 300), "p": b""},
    "a number of 400 digits": {"e": envelope("x", submitted="9" * 400), "p": b""},
    "a number below zero": {"e": envelope("x", submitted=-(10**310)), "p": b""},
    "a megabyte": {"e": b"1" * (1 << 20), "p": b""},
}


@pytest.mark.leaves_jobs
async def test_malformed_entries_stop_nothing(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """They cannot be answered, since nobody knows whom; they are left alone, logged, and everything goes on."""
    async with PlainService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        redis = commands(redis_url)
        for fields in MALFORMED.values():
            await write_entry(redis, MODEL, fields=fields)
            await client.run(Job(model=MODEL, input="mine"), timeout_s=5)
        await redis.aclose()
        await eventually(lambda: not len(service.router.held))
        assert (await client.audit(MODEL)).live == len(MALFORMED)

    left_alone = [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()]
    assert len(left_alone) == len(MALFORMED)
    assert max(map(len, left_alone)) < 1000


# -- credit and memory ------------------------------------------------------------------------------------------------


async def test_a_router_holds_no_more_than_its_credit(redis_url: str) -> None:
    """Fifty thousand jobs wait in Redis; the router holds what fills its slots and one batch more, in each lane."""
    forming = FormingPolicy(max_jobs=16)
    engine = SlowEngine(0.001)
    limits = Limits()
    bound = 3 * (2 + 1) * 16
    async with AsyncClient(redis_url) as client, PlainService(redis_url, MODEL):
        pass
    async with AsyncClient(redis_url) as client:
        await client.submit_many([Job(model=MODEL, input=n, inbox="nobody") for n in range(50_000)])
        service = PlainService(
            redis_url, MODEL, engine, policy=policy(forming=forming, limits=limits), consumer="second life"
        )
        async with service:
            worst = 0
            for _ in range(300):
                router = service.router
                worst = max(worst, len(router.scheduler.former) + 16 * router.scheduler.slots.in_flight)
                assert len(router.held) <= bound + 2 * 16
                assert router.held.bytes == sum(job.bytes for job in router.held)
                await asyncio.sleep(0.002)
            assert router.counts.answered > 500
            assert worst > 16
        assert service.router.held.bytes == len(service.router.held) == 0
        assert service.router.held.bytes == 0
        await execute(client._redis, "FLUSHALL")


async def test_nothing_is_read_while_there_are_no_replicas(redis_url: str) -> None:
    """Work stays in Redis, where another router could take it; it is read when a replica comes."""
    async with PlainService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        service.pool.change({})
        await asyncio.sleep(0.06)  # the read that was under way ends
        before = service.router.counts.read
        receipts = await client.submit_many(jobs(50))
        await asyncio.sleep(0.15)
        read = service.router.counts.read - before
        service.pool.change(service.replicas)
        results = [await client.result(receipt, timeout_s=5) for receipt in receipts]

    assert read == 0
    assert all(result.ok for result in results)


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_a_router_that_is_stopped_answers_what_it_holds(redis_url: str) -> None:
    """`run` returns when the last of it is answered; what it had not read stays in its lane."""
    engine = SlowEngine(0.01)
    forming = FormingPolicy(max_jobs=4)
    async with AsyncClient(redis_url) as client:
        async with PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)) as service:
            await client.submit_many(jobs(500))
            await eventually(lambda: len(service.router.scheduler.former) > 0)
        audit = await client.audit(MODEL)
        assert service.router.held.bytes == len(service.router.held) == 0
        assert 0 < audit.ok < 500
        assert audit.lost == audit.doubled == 0
        assert (await execute(client._redis, "XPENDING", keys_of(MODEL).lanes[1], GROUP))[0] == 0

        async with PlainService(redis_url, MODEL, consumer="second life"):
            await eventually(lambda: idle(client))
        await assert_all_accounted_for(client, 500)


async def test_a_router_that_is_stopped_at_once_returns_at_once(redis_url: str) -> None:
    """Within one blocking read."""
    async with PlainService(redis_url, MODEL):
        pass


async def test_a_fault_in_a_task_surfaces_from_run(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is not swallowed: `run` raises what the task raised, and Serve starts another router."""
    service = PlainService(redis_url, MODEL)
    caplog.set_level(logging.ERROR, "headrace.router")

    def faulty(now_s: float) -> list[Any]:
        raise ZeroDivisionError("a bug of ours")

    service.router.scheduler.former.expired = faulty  # type: ignore[method-assign]
    service.lease.start()
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        await asyncio.wait_for(service.router.run(), 5)
    await service.lease.stop()
    await service.replicas["replica-0"].close()
    assert any("a fault in the router of m" in record.getMessage() for record in caplog.records)


async def test_a_fault_while_entries_are_read_surfaces_from_run(redis_url: str) -> None:
    """The reader lives in `run` itself, and so does what it calls."""

    def faulty(now_s: float) -> int:
        raise ZeroDivisionError("a bug of ours")

    async with leased(redis_url, MODEL) as lease:
        router = ModelRouter(MODEL, redis_url, pool=LocalPool({}), policy=policy(), lease=lease)
        router.scheduler.slots.free = faulty  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError, match="a bug of ours"):
            await asyncio.wait_for(router.run(), 5)
