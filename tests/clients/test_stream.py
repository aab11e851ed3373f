"""Streams: what is asked for, what comes with the answer, how they end, and leaving them in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import (
    AsyncClient,
    EngineFailedError,
    Job,
    QueueFullError,
    ResultGoneError,
    ResultTimeoutError,
    Status,
)
from headrace.errors import FailureCode
from headrace.messages import pack_answer, pack_chunk
from headrace.models.registry import Limits
from support.by_hand import HandService
from support.by_hand_streams import MODEL, HandStream, job, opened, rest_of
from support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


# -- what is asked for --------------------------------------------------------------------------------------------


async def test_a_job_says_that_it_is_streamed_unless_it_says_otherwise(
    client: AsyncClient, service: HandService
) -> None:
    from headrace.messages import unpack_payload

    for params in ({}, {"stream": False, "max_tokens": 3}):
        await client.stream(job(params=params)).start()
    asked = [unpack_payload(entry.payload)[1] for entry in await service.take()]
    assert asked == [{"stream": True}, {"stream": False, "max_tokens": 3}]


async def test_text_that_no_chunk_carried_comes_with_the_answer(client: AsyncClient, service: HandService) -> None:
    """All of it, for a job that is not streamed."""
    stream, decoder = await opened(client, service, params={"stream": False})
    await decoder.finish("all at once")
    assert [piece async for piece in stream] == ["all at once"]


async def test_logprobs_go_with_their_tokens(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    logprobs: list[Any] = [{"token": one, "logprob": -0.5, "bytes": None, "top_logprobs": []} for one in "abc"]
    await decoder.write(pack_chunk(0, before=0, tokens=[97, 98], text="ab", logprobs=logprobs[:2]))
    output = {"choices": [{"index": 0, "text": "abc", "finish_reason": "stop", "logprobs": logprobs}]}
    await service._complete([(decoder.entry, Status.OK, pack_answer(output))])

    first, rest = [chunk async for chunk in stream.chunks()]
    assert (first.tokens, first.logprobs) == ([97, 98], logprobs[:2])
    assert (rest.text, rest.before, rest.logprobs) == ("c", 2, logprobs[2:])


async def test_what_is_refused_is_told_at_once(redis_url: str) -> None:
    async with HandService(redis_url, "small", limits=Limits(lane_capacity=1)), AsyncClient(redis_url) as client:
        await client.submit(Job(model="small", input="?"))
        with pytest.raises(QueueFullError):
            await client.stream(Job(model="small", input="?")).start()


async def test_a_cursor_that_is_none(client: AsyncClient) -> None:
    for wrong in ("", "$", "soon", "1-0/", "1-0/3", "1-0/3.x", "1-0/1.1.1"):
        with pytest.raises(ValueError, match="is no cursor"):
            client.stream("a", model=MODEL, after=wrong)


async def test_an_id_needs_a_model(client: AsyncClient) -> None:
    with pytest.raises(TypeError, match="model="):
        await client.stream("a").start()


async def test_a_job_that_never_was(client: AsyncClient) -> None:
    with pytest.raises(ResultGoneError, match="never submitted"):
        await client.stream("never", model=MODEL).start()


# -- how it ends --------------------------------------------------------------------------------------------------


async def test_a_failure_is_raised_once_all_text_was_read(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    await decoder.say("as far as ")
    await decoder.fail(Status.ERROR, FailureCode.ENGINE_FAILED, rest="it got")
    assert [await anext(stream), await anext(stream)] == ["as far as ", "it got"]
    assert stream.result is not None
    assert (stream.result.status, stream.result.text) == (Status.ERROR, "as far as it got")
    with pytest.raises(EngineFailedError):
        await anext(stream)


async def test_a_job_that_is_called_off_before_it_runs(client: AsyncClient) -> None:
    stream = client.stream(job(), timeout_s=5)
    await stream.cancel()
    with pytest.raises(Exception, match="cancelled"):
        await anext(stream)
    assert stream.result is not None
    assert stream.result.text is None


async def test_an_output_that_is_no_generation_has_no_text(client: AsyncClient, service: HandService) -> None:
    outputs: list[Any] = ["text", None, {"choices": []}, {"choices": [{"text": 3}]}, {"choices": "x"}]
    for output in outputs:
        receipt = await client.submit(job())
        await service.answer(*await service.take(), output=output)
        assert (await client.result(receipt)).text is None
    stream = await client.stream(job(params={"stream": False})).start()
    await service.answer(*await service.take(), output="of another kind")
    assert await rest_of(stream) == ""
    assert stream.result is not None
    assert stream.result.unwrap() == "of another kind"


async def test_leaving_and_coming_back(client: AsyncClient, service: HandService) -> None:
    """Stopping the iteration leaves the job alone; to iterate again goes on, and so does another stream."""
    stream, decoder = await opened(client, service)
    await decoder.say("a", "b", "c")
    async for _ in stream:
        break
    assert await anext(stream) == "b"
    await stream.aclose()
    await decoder.say("d")
    await decoder.finish("e")
    assert await rest_of(client.stream(stream.id, model=MODEL, after=stream.cursor, timeout_s=5)) == "cde"


async def test_a_closed_stream_leaves_the_answer_to_whoever_asks(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    await decoder.finish("there")
    await eventually(lambda: client.own_inbox.demultiplexer(MODEL).pending == 0)
    await stream.aclose()
    assert (await client.result(stream.id, model=MODEL, timeout_s=5)).text == "there"


async def test_closing_the_client_tells_who_watches(redis_url: str, service: HandService) -> None:
    async with AsyncClient(redis_url) as client:
        stream, decoder = await opened(client, service)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="client is closed"):
        await waiting
    await decoder.finish()


async def test_the_result_is_there_when_everything_before_it_was_read(
    client: AsyncClient, service: HandService
) -> None:
    stream, decoder = await opened(client, service)
    decoder.texts = {0: "", 1: ""}
    await decoder.finish("rest")
    for index in (0, 1):
        assert stream.result is None
        chunk = await stream.next_chunk()
        assert chunk is not None
        assert (chunk.index, chunk.text) == (index, "rest")
    assert stream.result is not None


async def test_time_passes_at_an_inbox_of_another_name(client: AsyncClient, service: HandService) -> None:
    """A read that was given up is begun again where it stood."""
    stream = await client.stream(job(inbox="mine"), timeout_s=0.05).start()
    [decoder] = await HandStream.take(service)
    for piece in "abc":
        with pytest.raises(ResultTimeoutError):
            await anext(stream)
        await decoder.say(piece)
        assert await anext(stream) == piece
    await decoder.finish()
    await stream.aclose()
