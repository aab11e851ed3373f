"""DUE: which of many models have something for their router to see to, told in one call."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from headrace import AsyncClient, CancelOutcome, Job
from headrace.keys import GROUP, LANES, keys_of
from headrace.messages import LaneEntry
from headrace.scripts import DUE, MAX_JOBS, GiveBack, lead, reap, release, retry
from headrace.server.connection import execute
from headrace.serving.due import Due, Watched, look_after, sweep_together
from support.by_hand import HandService
from support.waiting import eventually

MODELS = ("one", "two", "three")
ME = "me"


@pytest.fixture
async def services(redis_url: str) -> AsyncIterator[dict[str, HandService]]:
    """Three models, of each of which this router's generation has been told that it leads."""
    async with AsyncExitStack() as stack:
        services = {model: await stack.enter_async_context(HandService(redis_url, model)) for model in MODELS}
        for model, service in services.items():
            await lead(service.redis, model, 7, ME, able=True, may_succeed=False)
        yield services


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as client:
        yield client


async def due(services: dict[str, HandService], *, whole: bool = True, **known: Any) -> dict[str, Due]:
    """What is due, by model; only those of which anything is."""
    watched = [Watched(model, known.get("leader", 7), known.get("cancels_after", "")) for model in services]
    found = await look_after(services["one"].redis, ME, watched, whole=whole)
    return {model: of_it for model, of_it in zip(services, found, strict=True) if of_it}


async def beat(service: HandService, consumer: str) -> None:
    await execute(service.redis, "SET", keys_of(service.model).heartbeat(consumer), "1", "PX", 60_000)


async def read_as(service: HandService, consumer: str, lanes: Sequence[int], after: str = ">") -> None:
    keys = [keys_of(service.model).lanes[lane] for lane in lanes]
    words = ("XREADGROUP", "GROUP", GROUP, consumer, "STREAMS", *keys, *[after] * len(keys))
    await execute(service.redis, *words)


# -- as a tutorial --------------------------------------------------------------------------------------------------


async def test_nothing_is_due_of_models_at_rest(services: dict[str, HandService]) -> None:
    assert await due(services) == {}


async def test_a_request_to_cancel(services: dict[str, HandService], client: AsyncClient) -> None:
    """Until it was read."""
    receipt = await client.submit(Job(model="two", input="x"))
    await services["two"].take()
    assert await client.cancel(receipt) is CancelOutcome.REQUESTED
    await beat(services["two"], "hand")

    assert await due(services) == {"two": Due.CANCELS}
    [[entry_id, _]] = await execute(services["two"].redis, "XRANGE", keys_of("two").cancels, "-", "+")
    assert await due(services, cancels_after=entry_id.decode()) == {}
    before = f"{int(entry_id.split(b'-')[0]) - 1}"
    assert await due(services, cancels_after=before) == {"two": Due.CANCELS}


async def test_delayed_jobs_that_are_due(services: dict[str, HandService], client: AsyncClient) -> None:
    """Those that are not wait; sweeping puts the others back."""
    for model, delay_ms in (("one", 60_000), ("three", 1)):
        await client.submit(Job(model=model, input="x", id=f"of-{model}"))
        [entry] = await services[model].take()
        await retry(services[model].redis, model, [GiveBack(entry.lane, entry.entry_id, entry.text, delay_ms)])
        await beat(services[model], "hand")

    async def something() -> bool:
        return await due(services) != {}

    await eventually(something)
    assert await due(services) == {"three": Due.DELAYED}
    await sweep_together(services["one"].redis, ["one", "three"])
    assert await due(services) == {}
    assert len(await services["three"].take()) == 1
    await client.cancel("of-one", model="one")


async def test_another_generation_leads(services: dict[str, HandService]) -> None:
    """Or nobody has been asked yet who does."""
    await lead(services["two"].redis, "two", 8, "newer", able=True, may_succeed=False)
    await beat(services["two"], "newer")

    assert await due(services) == {"two": Due.LEADER}
    assert await due(services, leader=None) == dict.fromkeys(MODELS, Due.LEADER)


async def test_the_leading_router_is_dead(services: dict[str, HandService]) -> None:
    """It is another than ours, and has no heartbeat any more."""
    await execute(services["one"].redis, "HSET", keys_of("one").generation, "by", "other")
    await beat(services["one"], "other")
    assert await due(services) == {}
    await execute(services["one"].redis, "DEL", keys_of("one").heartbeat("other"))
    assert await due(services) == {"one": Due.LEADER}


async def test_a_generation_without_a_router_that_is_able(services: dict[str, HandService]) -> None:
    await lead(services["one"].redis, "one", 7, ME, able=False, may_succeed=False)
    assert await due(services) == {"one": Due.LEADER}


async def test_a_dead_consumer(services: dict[str, HandService]) -> None:
    """Its first read, of what it might hold, has put it into all lanes, and into the last one so."""
    await read_as(services["three"], "other", range(LANES), "0")
    await read_as(services["three"], ME, range(LANES), "0")
    await beat(services["three"], "other")
    assert await due(services) == {}
    await execute(services["three"].redis, "DEL", keys_of("three").heartbeat("other"))
    assert await due(services) == {"three": Due.DEAD}


async def test_the_first_read_of_a_consumer_puts_it_into_every_lane(services: dict[str, HandService]) -> None:
    """Of what it may hold already, on any server that we support: DUE depends on it."""
    await read_as(services["one"], "other", range(LANES), "0")
    known = [await services["one"].redis.xinfo_consumers(lane, GROUP) for lane in keys_of("one").lanes]
    assert [[consumer["name"] for consumer in of_lane] for of_lane in known] == [[b"other"]] * LANES


async def test_what_was_released_is_found(services: dict[str, HandService], client: AsyncClient) -> None:
    """Though the job lay in another lane than the one that is looked at."""
    await client.submit(Job(model="two", input="x", priority="high"))
    await read_as(services["two"], "goes", range(LANES))
    await release(services["two"].redis, "two", "goes")

    assert await due(services) == {"two": Due.DEAD}
    [row] = await reap(services["two"].redis, "two", ME)
    assert await due(services) == {}
    await services["two"].answer(LaneEntry.read(row.lane, row.entry_id, row.fields))


# -- edges ------------------------------------------------------------------------------------------------------------


async def test_who_leads_and_who_is_dead_is_not_always_looked_for(services: dict[str, HandService]) -> None:
    await read_as(services["three"], "other", range(LANES), "0")
    assert await due(services, whole=False, leader=6) == {}


async def test_what_cannot_be_read_counts_as_due(services: dict[str, HandService]) -> None:
    """Whoever sees to it learns why."""
    keys = keys_of("two")
    for key in (keys.cancels, keys.delayed, keys.generation, keys.lanes[23]):
        await execute(services["two"].redis, "SET", key, "something else", "PX", 60_000)

    assert await due(services) == {"two": Due.CANCELS | Due.DELAYED | Due.LEADER | Due.DEAD}
    await execute(services["two"].redis, "DEL", keys.cancels, keys.delayed, keys.generation, keys.lanes[23])
    await services["two"].__aenter__()


async def test_any_of_very_many(services: dict[str, HandService]) -> None:
    """More than one call takes: those of which something is due, and no others."""
    redis = services["one"].redis
    models = [f"m{n}" for n in range(2 * MAX_JOBS + 5)]
    random.seed(7)
    of_each = {model: random.choice([Due(0)] * 20 + [Due.DELAYED, Due.CANCELS]) for model in models}
    for model, kind in of_each.items():
        if kind is Due.DELAYED:
            await execute(redis, "ZADD", keys_of(model).delayed, 1, "job")
        elif kind is Due.CANCELS:
            await execute(redis, "XADD", keys_of(model).cancels, "*", "j", "job")

    found = await look_after(redis, ME, [Watched(model, 7, "") for model in models], whole=False)

    assert dict(zip(models, found, strict=True)) == of_each
    await execute(redis, "DEL", *(key for m in models for key in (keys_of(m).delayed, keys_of(m).cancels)))


async def test_many_models_at_rest_take_no_more_commands_than_one(services: dict[str, HandService]) -> None:
    redis = services["one"].redis

    async def commands_for(count: int) -> int:
        watched = [Watched(f"m{n}", 7, "") for n in range(count)]
        await look_after(redis, ME, watched, whole=False)
        before = int((await redis.info("stats"))["total_commands_processed"])
        await look_after(redis, ME, watched, whole=False)
        return int((await redis.info("stats"))["total_commands_processed"]) - before

    assert await commands_for(100) == await commands_for(1)


async def test_a_server_that_has_forgotten_the_script_is_told_it_again(services: dict[str, HandService]) -> None:
    assert await due(services) == {}
    await services["one"].redis.script_flush()
    assert await due(services) == {}
    assert await services["one"].redis.script_exists(DUE.sha) == [True]


async def test_no_models(services: dict[str, HandService]) -> None:
    assert await look_after(services["one"].redis, ME, [], whole=True) == []
    await sweep_together(services["one"].redis, [])
