"""Jobs that generate, from a router to replicas and back: streams, endings, and what goes on when something dies.

The engine is a fake one that says numbered words, so every answer is known; all else is real.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import AsyncClient, FailureCode, Job, RetryPolicy, Status
from headrace.errors import JobCancelledError
from headrace.keys import keys_of
from headrace.server.connection import commands, execute
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.decoders import FakeDecoder, words_of
from support.routing import MODEL, assert_all_accounted_for
from support.service import PlainService
from support.waiting import eventually


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, "jobs_per_replica": 8, "call_timeout_s": 5.0, **fields})


def job(prompt: str, words: int = 8, *, stream: bool = False, n: int = 1, **fields: Any) -> Job:
    params = {"max_tokens": words, "n": n} | ({"stream": True} if stream else {})
    return Job(model=MODEL, input=prompt, params=params, **fields)


def text_of(result: Any, choice: int = 0) -> str:
    return str(result.output["choices"][choice]["text"])


# -- how it works ------------------------------------------------------------------------------------------------------


async def test_a_job_is_answered_with_its_text(redis_url: str) -> None:
    """The answer tells how many tokens it took, and when it began, had its first token, and was done."""
    async with PlainService(redis_url, MODEL, FakeDecoder(), policy=policy()), AsyncClient(redis_url) as client:
        output = (await client.run(job("mill", 5))).unwrap()
        await assert_all_accounted_for(client, 1)

    assert output["choices"] == [{"index": 0, "text": "mill.0 mill.1 mill.2 mill.3 mill.4 ", "finish_reason": "length"}]
    assert output["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    timings = output["timings"]
    assert 0 <= timings["queued_ms"] <= timings["first_token_ms"] <= timings["total_ms"] < 5000


async def test_a_stream_says_each_word_as_it_comes(redis_url: str) -> None:
    engine = FakeDecoder(pause_at=3)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        heard = ""
        async with client.stream(job("mill", 6)) as stream:
            async for piece in stream:
                heard += piece
                if heard == words_of("mill", 3):
                    engine.go_on()
        assert heard == words_of("mill", 6)
        assert stream.result is not None
        assert text_of(stream.result) == heard
        await assert_all_accounted_for(client, 1)


async def test_jobs_join_those_that_run_and_leave_them_one_by_one(redis_url: str) -> None:
    """A short job that comes later is answered while a long one runs; its place is another's at once."""
    engine = FakeDecoder(step_s=0.002)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        long = await client.submit(job("long", 2000))
        await eventually(lambda: engine.most_together == 1)
        outputs = [text_of(result) async for result in client.map([job(f"short{n}", 3) for n in range(40)])]
        assert len(engine.running) == 1
        assert await client.cancel(long) is not None
        assert (await client.result(long, timeout_s=5)).status is Status.CANCELLED
        await assert_all_accounted_for(client, 41)

    assert outputs == [words_of(f"short{n}", 3) for n in range(40)]
    assert 1 < engine.most_together <= 8


async def test_hundreds_of_streams_beside_each_other(redis_url: str) -> None:
    """Each has all of its words and none of another's, with several choices as with one."""
    engines = [FakeDecoder(step_s=0.001) for _ in range(2)]

    async def listen(client: AsyncClient, number: int) -> list[str]:
        heard = [""] * (1 + number % 3)
        async with client.stream(job(f"w{number}", 10 + number % 7, n=len(heard))) as stream:
            async for chunk in stream.chunks():
                heard[chunk.index] += chunk.text
        return heard

    async with PlainService(redis_url, MODEL, *engines, policy=policy()), AsyncClient(redis_url) as client:
        heard = await asyncio.gather(*(listen(client, n) for n in range(200)))
        await assert_all_accounted_for(client, 200)

    for n, texts in enumerate(heard):
        assert texts == [words_of(f"w{n}", 10 + n % 7, choice=choice) for choice in range(1 + n % 3)]
    assert all(engine.started for engine in engines)


# -- ends that are none ------------------------------------------------------------------------------------------------


async def test_who_cancels_gets_what_there_is(redis_url: str) -> None:
    engine = FakeDecoder(pause_at=4)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        heard = ""
        stream = client.stream(job("mill", 1000))
        while heard != words_of("mill", 4):
            heard += await anext(aiter(stream))
        await stream.cancel()
        with pytest.raises(JobCancelledError):
            await anext(aiter(stream))
        await eventually(lambda: engine.running == [])
        assert stream.result is not None
        assert text_of(stream.result) == heard == words_of("mill", 4)
        assert stream.result.output["choices"][0]["finish_reason"] == "cancelled"
        await assert_all_accounted_for(client, 1)


async def cancel_quietly(url: str, job_id: str) -> None:
    """Put the request into the job's record alone, as if the message that tells of it had come too early to be read."""
    async with commands(url) as redis:
        key = keys_of(MODEL).record(job_id)
        state, _, rest = (await execute(redis, "GET", key)).partition(b" ")
        assert state == b"waiting"
        await execute(redis, "SET", key, b"cancelling " + rest)


async def test_a_request_to_cancel_is_heard_when_the_job_starts(redis_url: str) -> None:
    engine = FakeDecoder()
    async with PlainService(redis_url, MODEL, engine, policy=policy()) as service, AsyncClient(redis_url) as client:
        service.pool.change({})
        receipt = await client.submit(job("mill"))
        await eventually(lambda: service.router.scheduler.slots.replicas == 0)
        await cancel_quietly(redis_url, receipt.id)
        service.pool.change(service.replicas)

        assert (await client.result(receipt, timeout_s=5)).status is Status.CANCELLED
        assert engine.started == []


async def test_a_request_to_cancel_is_heard_with_the_next_chunk(redis_url: str) -> None:
    engine = FakeDecoder(pause_at=3)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        receipt = await client.submit(job("mill", 1000, stream=True))
        await eventually(lambda: engine.running and engine.running[0].positions == [3])
        await cancel_quietly(redis_url, receipt.id)
        engine.pause_at = 5

        result = await client.result(receipt, timeout_s=5)
        assert result.status is Status.CANCELLED
        assert result.text in (words_of("mill", 4), words_of("mill", 5))


async def test_a_deadline_ends_a_job_in_the_middle(redis_url: str) -> None:
    engine = FakeDecoder(pause_at=4)
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        result = await client.run(job("mill", 1000, deadline_s=0.3), timeout_s=5)
        assert engine.running == []
        assert (await client.run(job("next", 2), timeout_s=5)).ok, "the loop goes on"
        await assert_all_accounted_for(client, 2)

    assert result.status is Status.EXPIRED
    assert text_of(result) == words_of("mill", 4)


async def test_an_error_of_one_job_is_its_own(redis_url: str) -> None:
    """Whether it cannot be prepared, or fails in the middle; and half an answer is told to its producer."""
    async with PlainService(redis_url, MODEL, FakeDecoder(), policy=policy()), AsyncClient(redis_url) as client:
        some = [job("refuse"), job("fail@3"), job("mill")]
        refused, failed, fine = [result async for result in client.map(some)]
        await assert_all_accounted_for(client, 3)

    assert (refused.status, refused.failure and refused.failure.code) == (Status.ERROR, FailureCode.INVALID_INPUT)
    assert (failed.status, failed.failure and failed.failure.code) == (Status.ERROR, FailureCode.ENGINE_FAILED)
    assert text_of(failed) == words_of("fail@3", 3)
    assert text_of(fine) == words_of("mill", 8)


async def test_a_retry_goes_on_where_the_stream_broke_off(redis_url: str) -> None:
    engine = FakeDecoder()
    async with PlainService(redis_url, MODEL, engine, policy=policy()), AsyncClient(redis_url) as client:
        again = RetryPolicy(attempts=2, backoff_s=0.0)
        submitted = job("fail@3", 6, stream=True, retry=again)
        result = await client.run(submitted, timeout_s=5)
        await assert_all_accounted_for(client, 1)

    assert [words for _, words in engine.started] == [0, 3]
    assert result.status is Status.DEAD
    assert text_of(result) == words_of("fail@3", 3)
