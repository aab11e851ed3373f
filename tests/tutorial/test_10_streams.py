"""Watching an answer as it is generated. A decoder by hand says what there is to say, when the test pleases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace import AsyncClient, Client, Job, JobCancelledError, ResultTimeoutError, Status
from support.by_hand import HandService
from support.by_hand_streams import HandStream
from support.waiting import eventually

ABOUT_WATER = Job(model="by-hand", input="Where does water flow?")


@pytest.fixture
async def service(redis_url: str) -> AsyncIterator[HandService]:
    async with HandService(redis_url) as service:
        yield service


async def decode(service: HandService, *pieces: str) -> None:
    """Answer one job, piece by piece."""
    [decoder] = await eventually(lambda: HandStream.take(service))
    await decoder.say(*pieces)
    await decoder.finish()


async def test_the_text_comes_in_pieces(service: HandService, redis_url: str) -> None:
    """They add up to the answer, which is there at the end with all that is to be known of it."""
    async with AsyncClient(redis_url) as client:
        decoding = asyncio.create_task(decode(service, "Water ", "flows ", "downhill."))
        stream = client.stream(ABOUT_WATER)
        pieces = [piece async for piece in stream]
        await decoding

    assert pieces == ["Water ", "flows ", "downhill."]
    assert stream.result is not None
    assert stream.result.text == "Water flows downhill."
    assert stream.result.unwrap()["choices"][0]["finish_reason"] == "stop"


async def test_the_synchronous_client(service: HandService, redis_url: str) -> None:
    """The same as an ordinary iterator, on any thread."""

    def program() -> str:
        with Client(redis_url) as client, client.stream(ABOUT_WATER, timeout_s=5) as stream:
            return "|".join(stream)

    decoding = asyncio.create_task(decode(service, "Down", "hill."))
    assert await asyncio.to_thread(program) == "Down|hill."
    await decoding


async def test_another_process_goes_on_from_a_cursor(service: HandService, redis_url: str) -> None:
    """Each chunk has a cursor. Keep it with what you did of the chunk; after a crash nothing is skipped or repeated."""
    job = Job(model="by-hand", input="?", id="question-1", inbox="answers-of-mine")
    async with AsyncClient(redis_url) as client:
        stream = client.stream(job, timeout_s=5)
        await stream.start()
        [decoder] = await HandStream.take(service)
        await decoder.say("Water ", "flows ")
        chunk = await anext(stream.chunks())
        await stream.aclose()  # the crash, after the first chunk
    await decoder.say("down")
    await decoder.finish(rest="hill.")

    async with AsyncClient(redis_url) as client:
        stream = client.stream("question-1", model="by-hand", after=chunk.cursor, timeout_s=5)
        assert [piece async for piece in stream] == ["flows ", "down", "hill."]


async def test_a_job_that_is_cancelled_keeps_what_there_is(service: HandService, redis_url: str) -> None:
    """The iteration ends with the error that `Result.unwrap` raises, behind all the text there is."""
    async with AsyncClient(redis_url) as client, client.stream(ABOUT_WATER, timeout_s=5) as stream:
        [decoder] = await HandStream.take(service)
        await decoder.say("Water fl")
        assert await anext(stream) == "Water fl"

        await stream.cancel()
        await decoder.fail(Status.CANCELLED, rest="ows")

        assert await anext(stream) == "ows"
        with pytest.raises(JobCancelledError):
            await anext(stream)
        assert stream.result is not None
        assert stream.result.text == "Water flows"


async def test_waiting_has_an_end_and_the_job_goes_on(service: HandService, redis_url: str) -> None:
    """`timeout_s` is for each piece; ask again when you like."""
    async with AsyncClient(redis_url) as client, client.stream(ABOUT_WATER, timeout_s=0.05) as stream:
        with pytest.raises(ResultTimeoutError):
            await anext(stream)
        await decode(service, "Down", "hill.")
        assert [piece async for piece in stream] == ["Down", "hill."]


async def test_several_answers_to_one_job(service: HandService, redis_url: str) -> None:
    """With `n` above 1, `chunks` says of each piece which answer it belongs to."""
    job = Job(model="by-hand", input="?", params={"n": 2})
    async with AsyncClient(redis_url) as client, client.stream(job, timeout_s=5) as stream:
        [decoder] = await HandStream.take(service)
        await decoder.say("Up", index=0)
        await decoder.say("Do", index=1)
        await decoder.say("wn", index=1)
        await decoder.finish()
        assert [(chunk.index, chunk.text) async for chunk in stream.chunks()] == [(0, "Up"), (1, "Do"), (1, "wn")]
