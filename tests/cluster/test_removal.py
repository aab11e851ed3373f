"""Removing a model from Redis: it is closed, its jobs are seen to, and nothing of it stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from headrace import AsyncClient, FailureCode, Job, RetryPolicy, Status, UnknownModelError, scripts
from headrace.keys import MODELS, keys_of
from headrace.models.dead_letters import replay_letters
from headrace.models.registry import Limits, close_model, forget_model, open_model, register, registered_models
from headrace.scripts import ForgetOutcome
from headrace.server.connection import commands, execute
from headrace_cluster.rollout.removal import bury_jobs, closed_models, forget_models, live_jobs, wait_until_empty
from support.by_hand import HandService
from support.routing import MODEL, jobs
from support.service import PlainService, leased


@pytest.fixture
async def direct(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = commands(redis_url)
    yield client
    await client.aclose()


async def keys_left(client: redis.asyncio.Redis) -> set[str]:
    """Those of the model that stand for ever."""
    found = [key.decode() async for key in client.scan_iter(keys_of(MODEL).prefix + "*")]
    return {key for key in found if await client.ttl(key) == -1}


# -- closing --------------------------------------------------------------------------------------------------------


async def test_a_closed_model_takes_no_jobs_and_finishes_those_it_has(
    redis_url: str, direct: redis.asyncio.Redis
) -> None:
    """Producers are told that nobody serves it. Opened again, it takes them."""
    async with HandService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        receipt = await client.submit(Job(model=MODEL, input=1))
        await close_model(direct, MODEL, generation=5)
        assert await closed_models(direct) == {MODEL}
        with pytest.raises(UnknownModelError):
            await client.submit(Job(model=MODEL, input=2))
        await service.answer_all()
        assert (await client.result(receipt, timeout_s=5)).unwrap() == 1
        await open_model(direct, MODEL, Limits(lane_capacity=3))
        assert await closed_models(direct) == set()
        await client.submit_many(jobs(3))
        await service.answer_all()


async def test_a_submission_that_is_repeated_finds_its_jobs(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """Its reply may have been lost on the way; what was accepted is accepted, though the model closed meanwhile."""
    async with HandService(redis_url, MODEL):
        ask = {"priority": 1, "token": "t0ken", "inbox": "box", "tenant": "default"}
        job = ("j1", 0, "-", b"\x81\xa5input\x01")
        first = await scripts.submit(direct, MODEL, [job], **ask)  # type: ignore[arg-type]
        await close_model(direct, MODEL, generation=5)
        again = await scripts.submit(direct, MODEL, [job, ("j2", *job[1:])], **ask)  # type: ignore[arg-type]
        assert [*first, *again] == ["accepted", "accepted", "unknown_model"]


async def test_who_opens_it_again(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """Not a router of the generation that was to lose it, when it starts again; a newer one does."""
    await register(direct, MODEL, Limits(), generation=5)
    await close_model(direct, MODEL, generation=5)
    for generation, is_closed in ((4, True), (5, True), (6, False)):
        await register(direct, MODEL, Limits(lane_capacity=9), generation=generation)
        assert (MODEL in await closed_models(direct)) == is_closed
    assert await execute(direct, "HGET", keys_of(MODEL).meta, "lane_capacity") == b"9"


# -- what becomes of its jobs -----------------------------------------------------------------------------------------


async def test_draining(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """Until its last job has ended, or the time is over."""
    said: list[str] = []
    async with HandService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        await client.submit_many(jobs(3))
        assert await wait_until_empty(direct, [MODEL], timeout_s=0.0, say=said.append) == {MODEL: 3}
        service.keep_answering()
        assert await wait_until_empty(direct, [MODEL], timeout_s=20.0, say=said.append) == {}
    assert said[-1].startswith("draining: ")


async def test_setting_aside(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """All that wait, whether in a lane, for a later attempt, or released by a router; each can be replayed."""
    async with AsyncClient(redis_url) as client, HandService(redis_url, MODEL) as service:
        await client.submit_many(jobs(5))
        again = RetryPolicy(attempts=3, backoff_s=60)
        await client.submit(Job(model=MODEL, input="delayed", id="later", retry=again, priority="high"))
        later, released, *_ = await service.take(1)
        give_back = scripts.GiveBack(later.lane, later.entry_id, later.text, 60_000)
        await scripts.retry(direct, MODEL, [give_back])
        await scripts.release(direct, MODEL, "hand")
        assert released.entry_id
        await close_model(direct, MODEL, generation=1)

        assert await bury_jobs(direct, redis_url, MODEL, timeout_s=30) == 6
        assert await live_jobs(direct, [MODEL]) == {}
        result = await client.result("later", model=MODEL, timeout_s=5)
        assert (result.status, result.failure and result.failure.code) == (Status.DEAD, FailureCode.MODEL_REMOVED)
        assert await forget_model(direct, MODEL) is ForgetOutcome.LETTERS_KEPT
        keys = keys_of(MODEL)
        assert await keys_left(direct) == {keys.dead_letters, keys.counters, keys.meta}
        with pytest.raises(UnknownModelError):
            await client.submit(Job(model=MODEL, input="none serves it"))

        letters = [letter.decode() for letter, _ in await execute(direct, "XRANGE", keys.dead_letters, "-", "+")]
        await replay_letters(direct, MODEL, letters)
        await register(direct, MODEL, Limits())
        await service.answer_all()
        audit = await client.audit(MODEL)
        assert (audit.submitted, audit.finished, audit.lost, audit.doubled) == (12, 12, 0, 0)


@pytest.mark.leaves_jobs
async def test_what_somebody_holds_is_left_to_him(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """He lives, and may end it yet."""
    async with (
        HandService(redis_url, MODEL) as service,
        AsyncClient(redis_url) as client,
        leased(redis_url, MODEL, "hand"),
    ):
        await client.submit(Job(model=MODEL, input=1))
        await service.take()
        with pytest.raises(TimeoutError):
            await bury_jobs(direct, redis_url, MODEL, timeout_s=0.5)
        assert await live_jobs(direct, [MODEL]) == {MODEL: 1}


# -- forgetting -----------------------------------------------------------------------------------------------------


async def test_nothing_stays(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """Once its router has ended; records and answers go by themselves."""
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as client:
        assert [result.unwrap() async for result in client.map(jobs(9))] == list(range(9))
        assert await forget_model(direct, MODEL) is ForgetOutcome.READ
        assert await forget_models(direct, [MODEL], served=[], timeout_s=0.0) == {MODEL: ForgetOutcome.READ}
    assert await forget_models(direct, [MODEL], served=[], timeout_s=10.0) == {MODEL: ForgetOutcome.FORGOTTEN}
    assert await keys_left(direct) == set()
    assert await registered_models(direct) == []
    assert not await execute(direct, "EXISTS", MODELS)


async def test_not_with_jobs(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """Whatever he says who asks."""
    async with HandService(redis_url, MODEL), AsyncClient(redis_url) as client:
        await client.submit(Job(model=MODEL, input=1))
        before = await keys_left(direct)
        assert await forget_model(direct, MODEL) is ForgetOutcome.LIVE
        assert await keys_left(direct) == before


async def test_shards_go_one_by_one(redis_url: str, direct: redis.asyncio.Redis) -> None:
    """With the last of them goes what says how many there are."""
    await asyncio.gather(*(register(direct, f"{MODEL}#{n}", Limits(), shards=2) for n in range(2)))
    await forget_models(direct, [f"{MODEL}#1"], served=[f"{MODEL}#0"], timeout_s=1.0)
    assert await execute(direct, "HGET", keys_of(MODEL).meta, "shards") == b"2"
    await forget_models(direct, [f"{MODEL}#0"], served=["other"], timeout_s=1.0)
    assert not await execute(direct, "EXISTS", keys_of(MODEL).meta)
    assert await registered_models(direct) == []
