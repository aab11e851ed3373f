"""Jobs that are handed back: for another attempt, at a router's end, after a router's death."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import AsyncClient, Job, JobState, QueueFullError, RetryPolicy, Status
from headrace.errors import FailureCode
from headrace.keys import GROUP, keys_of
from headrace.messages import LaneEntry
from headrace.models.registry import Limits
from headrace.scripts import GiveBack, RetryOutcome, blame, reap, release, retry, sweep
from headrace.server.connection import execute
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
KEYS = keys_of(MODEL)


def job(job_id: str = "a", **fields: object) -> Job:
    return Job(model=MODEL, input=job_id, id=job_id, **fields)


def back(entry: LaneEntry, delay_ms: int = 0) -> GiveBack:
    return GiveBack(entry.lane, entry.entry_id, entry.text, delay_ms)


async def beat(service: HandService, consumer: str) -> None:
    await execute(service.redis, "SET", KEYS.heartbeat(consumer), "1", "PX", 60_000)


async def read_as(service: HandService, consumer: str, count: int = 100) -> list[LaneEntry]:
    """Deliver waiting jobs to a consumer."""
    entries: list[LaneEntry] = []
    for lane, key in enumerate(KEYS.lanes):
        reply = await execute(
            service.redis, "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", key, ">"
        )
        for _, items in reply or ():
            entries += [LaneEntry.read(lane, entry_id, fields) for entry_id, fields in items]
    return entries


# -- another attempt -----------------------------------------------------------------------------------------------


async def test_at_once(service: HandService, client: AsyncClient) -> None:
    """The job is in its lane again, one attempt further, under an entry of its own."""
    receipt = await client.submit(job())
    [entry] = await service.take()

    assert await retry(service.redis, MODEL, [back(entry)]) == [RetryOutcome.AGAIN]

    [again] = await service.take()
    assert again.entry_id != entry.entry_id
    assert again.payload == entry.payload
    assert again.envelope == entry.envelope._replace(attempt=2)
    await service.answer(again, output="at last")
    result = await client.result(receipt)
    assert (result.output, result.attempt) == ("at last", 2)


async def test_later(service: HandService, client: AsyncClient) -> None:
    """Until it is due it is in no lane, and live all the same."""
    await client.submit(job())
    [entry] = await service.take()
    await retry(service.redis, MODEL, [back(entry, delay_ms=30)])

    assert await service.take() == []
    assert (await client.status("a", model=MODEL)).state is JobState.DELAYED
    audit = await client.audit(MODEL)
    assert (audit.live, audit.delayed, audit.lost) == (1, 1, 0)

    async def promoted() -> bool:
        return await sweep(service.redis, MODEL) == 1

    await eventually(promoted)
    [again] = await service.take()
    assert again.envelope.attempt == 2
    assert await execute(service.redis, "EXISTS", KEYS.delayed, KEYS.prefix + "d:a") == 0


async def test_never_later_than_the_deadline(service: HandService, client: AsyncClient) -> None:
    """It goes back to its lane to expire there, rather than hours after."""
    await client.submit(job(deadline_s=60))
    [entry] = await service.take()
    await retry(service.redis, MODEL, [back(entry, delay_ms=3_600_000)])

    due_ms = await execute(service.redis, "ZSCORE", KEYS.delayed, "a")
    assert float(due_ms) == entry.envelope.deadline_ms
    await client.cancel("a", model=MODEL)


async def test_an_answer_of_the_former_attempt_is_dropped(service: HandService, client: AsyncClient) -> None:
    """A zombie that finishes the entry that was given back is late."""
    await client.submit(job())
    [entry] = await service.take()
    await retry(service.redis, MODEL, [back(entry)])

    assert await service.answer(entry, output="zombie") == [False]

    await service.answer_all()
    audit = await client.audit(MODEL)
    assert (audit.ok, audit.live, audit.doubled) == (1, 0, 0)


async def test_a_replay_of_the_call_changes_nothing(service: HandService, client: AsyncClient) -> None:
    await client.submit(job())
    [entry] = await service.take()
    calls = [await retry(service.redis, MODEL, [back(entry)]) for _ in range(3)]

    assert calls == [[RetryOutcome.AGAIN], [RetryOutcome.ENDED], [RetryOutcome.ENDED]]
    assert (await client.audit(MODEL)).live == 1


async def test_a_job_that_has_ended_stays_so(service: HandService, client: AsyncClient) -> None:
    await client.submit(job())
    [entry] = await service.take()
    await service.answer(entry)

    assert await retry(service.redis, MODEL, [back(entry)]) == [RetryOutcome.ENDED]
    assert (await client.audit(MODEL)).live == 0


# -- the policy ----------------------------------------------------------------------------------------------------


def test_the_delay_doubles_up_to_a_bound() -> None:
    policy = RetryPolicy(attempts=10, backoff_s=1, longest_backoff_s=5)
    for attempt, longest_ms in enumerate([1000, 2000, 4000, 5000, 5000], start=1):
        delays = [policy.delay_ms(attempt) for _ in range(200)]
        assert longest_ms / 2 <= min(delays) <= max(delays) <= longest_ms
        assert max(delays) - min(delays) > longest_ms / 4, "producers that failed together do not return together"


def test_the_word_says_it_all() -> None:
    policy = RetryPolicy(attempts=7, backoff_s=0.25, longest_backoff_s=9, on=[FailureCode.NOT_FINITE, "poison"])
    assert policy.to_word() == "7,250,9000,not_finite+poison"
    assert RetryPolicy.from_word(policy.to_word()) == policy
    assert RetryPolicy.from_word("2,0,0,none+of_the_future").on == frozenset()


async def test_it_travels_with_the_job(service: HandService, client: AsyncClient) -> None:
    await client.submit(job(retry=RetryPolicy(attempts=5)))
    [entry] = await service.take()
    assert RetryPolicy.from_word(entry.envelope.retry) == RetryPolicy(attempts=5)


# -- at a router's end ---------------------------------------------------------------------------------------------


async def test_released_jobs_count_as_if_never_read(service: HandService, client: AsyncClient) -> None:
    await client.submit_many([job(str(n)) for n in range(300)])
    assert len(await read_as(service, "goes", 300)) == 300

    await release(service.redis, MODEL, "goes")

    consumers = await service.redis.xinfo_consumers(KEYS.lanes[1], GROUP)
    assert [consumer["name"] for consumer in consumers] == [b"released"]
    await beat(service, "stays")
    taken = [row for _ in range(3) for row in await reap(service.redis, MODEL, "stays")]
    assert len(taken) == 300
    assert {row.deliveries for row in taken} == {1}
    await service.answer(*[LaneEntry.read(row.lane, row.entry_id, row.fields) for row in taken])


async def test_releasing_nothing(service: HandService) -> None:
    await release(service.redis, MODEL, "nobody")


# -- blame ---------------------------------------------------------------------------------------------------------


async def test_blame_is_handed_over_with_the_job(service: HandService, client: AsyncClient) -> None:
    """Through an orderly end and through a death; and nobody sees it in the count of deliveries."""
    receipt = await client.submit(job("suspect"))
    [entry] = await read_as(service, "first")
    where: Any = {"lane": entry.lane, "entry_id": entry.entry_id}
    assert await blame(service.redis, MODEL, "first", **where, lone_failures=1)
    assert (await client.status(receipt)).deliveries == 1
    await release(service.redis, MODEL, "first")
    for deliveries, reaper in enumerate(("second", "third"), start=1):
        await beat(service, reaper)
        [row] = await reap(service.redis, MODEL, reaper)
        assert (row.deliveries, row.lone_failures) == (deliveries, 1)
        await service.redis.delete(KEYS.heartbeat(reaper))
    assert await blame(service.redis, MODEL, "third", **where, lone_failures=2)
    await beat(service, "fourth")
    [row] = await reap(service.redis, MODEL, "fourth")
    assert (row.deliveries, row.lone_failures) == (3, 2)
    await service.answer(entry)


async def test_who_has_a_job_no_more_blames_nobody(service: HandService, client: AsyncClient) -> None:
    await client.submit(job("suspect"))
    [entry] = await read_as(service, "first")
    where: Any = {"lane": entry.lane, "entry_id": entry.entry_id}
    assert not await blame(service.redis, MODEL, "second", **where, lone_failures=1)
    await service.answer(entry)
    assert not await blame(service.redis, MODEL, "first", **where, lone_failures=1)


# -- after a router's death ----------------------------------------------------------------------------------------


async def test_what_a_dead_consumer_held_is_taken_over(service: HandService, client: AsyncClient) -> None:
    """And the consumer is forgotten."""
    await client.submit_many([job("high", priority="high"), job("low", priority="low"), job("normal")])
    await read_as(service, "dead")
    await beat(service, "lives")

    taken = await reap(service.redis, MODEL, "lives")

    entries = [LaneEntry.read(row.lane, row.entry_id, row.fields) for row in taken]
    assert {entry.envelope.job_id for entry in entries} == {"high", "low", "normal"}
    assert {row.deliveries for row in taken} == {2}
    for lane in range(3):
        [consumer] = await service.redis.xinfo_consumers(KEYS.lanes[lane], GROUP)
        assert consumer["name"] == b"lives"
    await service.answer(*entries)


async def test_who_lives_loses_nothing(service: HandService, client: AsyncClient) -> None:
    await client.submit(job())
    [entry] = await read_as(service, "lives")
    await beat(service, "lives")
    await beat(service, "reaper")

    assert await reap(service.redis, MODEL, "reaper") == []
    await service.answer(entry)


@pytest.mark.leaves_jobs
async def test_a_dead_consumer_is_reaped_bit_by_bit(service: HandService, client: AsyncClient) -> None:
    """It is remembered until the last of what it held is taken."""
    await client.submit_many([job(str(n)) for n in range(10)])
    await read_as(service, "dead")
    await beat(service, "lives")

    sizes = [len(await reap(service.redis, MODEL, "lives", 4)) for _ in range(4)]

    assert sizes == [4, 4, 2, 0]
    await service.answer(*await service.take(again=True))


@pytest.mark.leaves_jobs
async def test_two_reapers_never_take_the_same_job(service: HandService, client: AsyncClient) -> None:
    await client.submit_many([job(str(n)) for n in range(100)])
    await read_as(service, "dead")
    for name in ("one", "two"):
        await beat(service, name)

    calls = [reap(service.redis, MODEL, name, 7) for _ in range(10) for name in ("one", "two")]
    taken = [row.entry_id for rows in await asyncio.gather(*calls) for row in rows]

    assert len(taken) == len(set(taken)) == 100


@pytest.mark.leaves_jobs
async def test_answered_entries_are_not_taken_over(service: HandService, client: AsyncClient) -> None:
    await client.submit_many([job("a"), job("b")])
    first, _ = await read_as(service, "dead")
    await service.answer(first)
    await beat(service, "lives")

    [row] = await reap(service.redis, MODEL, "lives")
    assert row.entry_id != first.entry_id.encode()


@pytest.mark.leaves_jobs
async def test_a_request_to_cancel_is_found_with_the_job(service: HandService, client: AsyncClient) -> None:
    """Whoever takes it over knows, also if nobody was there when it was made."""
    await client.submit(job())
    await read_as(service, "dead")
    await client.cancel("a", model=MODEL)
    await beat(service, "lives")

    [row] = await reap(service.redis, MODEL, "lives")
    assert row.cancelling


# -- how fast jobs end ---------------------------------------------------------------------------------------------


async def test_the_retry_after_of_a_full_lane_is_computed(redis_url: str) -> None:
    """From how many jobs ended lately."""
    async with HandService(redis_url, limits=Limits(lane_capacity=50)) as service, AsyncClient(redis_url) as client:
        await sweep(service.redis, MODEL)
        await client.submit_many([job(str(n)) for n in range(50)])
        await service.answer_all()
        now_ms = int((await execute(service.redis, "TIME"))[0]) * 1000
        await execute(service.redis, "HSET", KEYS.meta, "measured_ms", now_ms - 10_000)
        await sweep(service.redis, MODEL)
        rate = float(await execute(service.redis, "HGET", KEYS.meta, "drain_per_s"))
        assert 0 < rate <= 50

        with pytest.raises(QueueFullError) as refused:
            await client.submit_many([job(str(n), inbox="elsewhere") for n in range(100, 250)])
        assert refused.value.retry_after_s == pytest.approx(100 / rate, rel=0.01)


async def test_a_tenant_that_comes_anew_gets_the_emptiest_lane(service: HandService, client: AsyncClient) -> None:
    """And keeps it while it has live jobs."""
    await client.submit_many([job(f"a{n}", tenant="a") for n in range(20)])
    await client.submit_many([job(f"b{n}", tenant="b") for n in range(3)])
    await client.submit_many([job("a-late", tenant="a"), job("c", tenant="c")])

    lanes = {entry.envelope.job_id: entry.lane for entry in await service.take()}
    assert {lanes[f"a{n}"] for n in range(20)} == {lanes["a-late"]} == {1}
    assert {lanes[f"b{n}"] for n in range(3)} == {4}
    assert lanes["c"] == 7
    for entry in await service.take(again=True):
        await service.answer(entry)
    assert await execute(service.redis, "HLEN", KEYS.parts) == 0


async def test_a_dead_job_ends_as_such(service: HandService, client: AsyncClient) -> None:
    receipt = await client.submit(job())
    [entry] = await service.take()
    await service.fail(entry, status=Status.DEAD, code=FailureCode.POISON)
    result = await client.result(receipt)
    assert result.status is Status.DEAD
    audit = await client.audit(MODEL)
    assert (audit.dead, audit.dead_letters) == (1, 1)
