"""Streams on bad days: several who watch, slow ones, gaps, what was consumed, and what is left behind."""

from __future__ import annotations

import asyncio

import pytest

from headrace import (
    AsyncClient,
    Client,
    ClientSettings,
    DecodeError,
    Job,
    ResultGoneError,
    Status,
)
from headrace.codec import pack
from headrace.errors import FailureCode
from headrace.keys import keys_of
from headrace.messages import InboxEntry, pack_answer, pack_chunk
from headrace.scripts import GiveBack, retry, sweep
from headrace.server.connection import execute
from headrace.streaming import source as stream_source
from headrace.streaming.source import OwnSource
from support.by_hand import HandService
from support.by_hand_streams import MODEL, HandStream, job, opened, rest_of
from support.waiting import eventually

KEYS = keys_of(MODEL)
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


# -- several, and slow ones ---------------------------------------------------------------------------------------


async def test_several_watch_one_job(client: AsyncClient, service: HandService, redis_url: str) -> None:
    """In one process or in many, from the beginning or from now on, and the last one tidies up."""
    stream, decoder = await opened(client, service, id="watched")
    await decoder.say("one ", "two ")
    again = await client.stream("watched", model=MODEL, timeout_s=5).start()
    async with AsyncClient(redis_url) as other:
        elsewhere = await other.stream("watched", model=MODEL, timeout_s=5).start()
        assert await anext(elsewhere) == "one "
        await decoder.say("three ")
        await decoder.finish("four")
        for watching in (elsewhere, stream, again):
            assert (await rest_of(watching)).endswith("two three four")
            assert watching.result is not None
            assert watching.result.text == "one two three four"
    await eventually(lambda: inbox_is_empty(client, service))


async def test_chunks_are_wanted_while_somebody_watches(client: AsyncClient, service: HandService) -> None:
    demultiplexer = client.own_inbox.demultiplexer(MODEL)
    one, other = (OwnSource(service.redis, demultiplexer, MODEL, client.inbox, "a") for _ in range(2))
    demultiplexer.feed_chunk(InboxEntry(client.inbox, "1-0", "a", "chunk", 1, b""))
    for source in (one, other):
        await source.next()
    assert [await source.close(ended=True) for source in (one, other)] == [(), ["1-0"]]


async def test_a_slow_one_reads_again_what_was_not_kept(
    client: AsyncClient, service: HandService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by a number of entries; the inbox has the others. Nobody else waits."""
    monkeypatch.setattr(stream_source, "_MOST_KEPT", 4)
    monkeypatch.setattr(stream_source, "_AT_ONCE", 8)
    slow, decoder = await opened(client, service, id="slow")
    quick = await client.stream("slow", model=MODEL, timeout_s=5).start()
    for n in range(40):
        await decoder.say(f"{n} ")
        assert await anext(quick) == f"{n} "
    assert len(slow._source._kept) <= 4  # type: ignore[union-attr]
    seen = [await anext(slow) for _ in range(30)]
    await decoder.say(*(f"{n} " for n in range(40, 60)))
    await decoder.finish("end")
    seen += [piece async for piece in slow]
    assert seen == [*(f"{n} " for n in range(60)), "end"]
    assert await rest_of(quick) == "".join(seen[40:])


async def test_hundreds_of_streams_share_one_reader(client: AsyncClient, service: HandService) -> None:
    streams = await asyncio.gather(*(client.stream(job(), timeout_s=10).start() for _ in range(300)))
    decoders = {decoder.entry.envelope.job_id: decoder for decoder in await HandStream.take(service, 300)}
    connections = int((await service.redis.info("clients"))["connected_clients"])
    texts = asyncio.gather(*(rest_of(stream) for stream in streams))
    for decoder in decoders.values():
        await decoder.say("x", decoder.entry.envelope.job_id)
        await decoder.finish("y")
    assert await texts == [f"x{stream.id}y" for stream in streams]
    assert connections < 100


async def test_chunks_that_nobody_watches_are_nothing_to_the_others(client: AsyncClient, service: HandService) -> None:
    receipt = await client.submit(job(params={"stream": True}))
    [decoder] = await HandStream.take(service)
    await decoder.say("a", "b")
    await decoder.finish("c")
    assert (await client.result(receipt, timeout_s=5)).text == "abc"


# -- what was lost, doubled or trimmed ----------------------------------------------------------------------------


async def test_what_comes_twice_is_delivered_once(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    first, second = decoder.next_body("ab"), pack_chunk(0, before=2, tokens=[99], text="c")
    for body in (first, first, second, first, second):
        await execute(service.redis, "XADD", KEYS.inbox(client.inbox), "*", "e", f"1 {stream.id} chunk 1", "r", body)
    await decoder.finish("abcd")
    assert [piece async for piece in stream] == ["ab", "c", "d"]


async def test_other_parts_of_the_same_text_are_delivered_once(client: AsyncClient, service: HandService) -> None:
    """As after a server has lost its last second, and the decoder cuts its text in another way."""
    stream, decoder = await opened(client, service)
    for before, text in ((0, "abc"), (3, "de"), (3, "defg"), (7, "h")):
        body = pack_chunk(0, before=before, tokens=[ord(one) for one in text], text=text)
        await execute(service.redis, "XADD", KEYS.inbox(client.inbox), "*", "e", f"1 {stream.id} chunk 1", "r", body)
    await decoder.finish("abcdefgh")
    chunks = [chunk async for chunk in stream.chunks()]
    assert [(chunk.before, chunk.text) for chunk in chunks] == [(0, "abc"), (3, "de"), (5, "fg"), (7, "h")]


async def test_a_gap_is_an_error(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    await decoder.say("ab")
    await decoder.write(pack_chunk(0, before=3, tokens=[100], text="d"))
    assert await anext(stream) == "ab"
    with pytest.raises(DecodeError, match="follows token 3; the last was 2"):
        await anext(stream)
    await decoder.finish()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", pack_answer(1), pack_chunk(0, before=-1, tokens=[], text=""),
        pack({"i": 0, "n": 0, "tokens": ["a"], "text": ""}), pack_chunk(0, before=0, tokens=[1], text="", logprobs=[]),
        pack_chunk(0, before=0, tokens=[True], text=""), pack_chunk(9999, before=0, tokens=[1], text=""),
    ],
)  # fmt: skip
async def test_a_chunk_that_is_none_is_an_error(client: AsyncClient, service: HandService, body: bytes) -> None:
    stream, decoder = await opened(client, service)
    await decoder.write(body)
    with pytest.raises(DecodeError):
        await anext(stream)
    await stream.aclose()
    await decoder.finish()


async def test_a_beginning_that_was_trimmed_is_said_to_be(
    client: AsyncClient, service: HandService, redis_url: str
) -> None:
    stream, decoder = await opened(client, service, inbox="mine", id="trimmed")
    await decoder.say("ab", "cd")
    chunk = await stream.next_chunk()
    assert chunk is not None
    assert await client.trim("mine", model=MODEL, through=chunk.cursor) == 1
    await decoder.finish("ef")
    with pytest.raises(ResultGoneError, match="the beginning"):
        await rest_of(client.stream("trimmed", model=MODEL, timeout_s=5))
    assert await rest_of(client.stream("trimmed", model=MODEL, after=chunk.cursor, timeout_s=5)) == "cdef"
    assert await rest_of(stream) == "cdef"


async def test_the_end_again_and_again_from_an_inbox_of_ones_own(client: AsyncClient, service: HandService) -> None:
    """Nothing is deleted there; from a cursor at the end, only the result is left."""
    stream, decoder = await opened(client, service, inbox="mine", id="kept")
    await decoder.say("ab")
    await decoder.finish("cd")
    assert await rest_of(stream) == "abcd"
    assert await rest_of(client.stream("kept", model=MODEL, timeout_s=5)) == "abcd"
    again = client.stream("kept", model=MODEL, after=stream.cursor, timeout_s=5)
    assert await rest_of(again) == ""
    assert again.result == stream.result
    results = [result async for result in client.results("mine", model=MODEL, after=stream.cursor, idle_s=0.01)]
    assert results == []


async def test_an_answer_that_was_consumed_is_gone(client: AsyncClient, service: HandService, redis_url: str) -> None:
    stream, decoder = await opened(client, service, id="once")
    await decoder.finish("ab")
    assert await rest_of(stream) == "ab"
    await eventually(lambda: inbox_is_empty(client, service))
    for watching in (client, AsyncClient(redis_url)):
        with pytest.raises(ResultGoneError, match="was consumed"):
            await rest_of(watching.stream("once", model=MODEL, timeout_s=5))
        if watching is not client:
            await watching.aclose()


async def test_a_consumed_stream_leaves_nothing(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    await decoder.say(*"many small pieces")
    assert await execute(service.redis, "LLEN", KEYS.chunks(stream.id)) == 18
    await decoder.finish()
    assert await rest_of(stream) == "many small pieces"
    await eventually(lambda: inbox_is_empty(client, service))
    assert not await execute(service.redis, "EXISTS", KEYS.chunks(stream.id))


async def inbox_is_empty(client: AsyncClient, service: HandService) -> bool:
    return int(await execute(service.redis, "XLEN", KEYS.inbox(client.inbox))) == 0


async def test_answers_are_kept_where_that_is_asked_for(redis_url: str, service: HandService) -> None:
    async with AsyncClient(redis_url, settings=ClientSettings(keep_results=True)) as client:
        stream, decoder = await opened(client, service)
        await decoder.say("a")
        await decoder.finish()
        await rest_of(stream)
        again = client.stream(stream.id, model=MODEL, timeout_s=5)
        assert await rest_of(again) == "a"


# -- retries, duplicates, dead letters ----------------------------------------------------------------------------


async def test_a_retried_job_goes_on_behind_what_was_delivered(client: AsyncClient, service: HandService) -> None:
    stream, decoder = await opened(client, service)
    await decoder.say("ab")
    entry = decoder.entry
    await retry(service.redis, MODEL, [GiveBack(entry.lane, entry.entry_id, entry.text, 1)])
    await eventually(lambda: sweep(service.redis, MODEL))
    [second] = await HandStream.take(service)
    assert (second.texts, second.entry.envelope.attempt) == ({0: "ab"}, 2)
    await second.say("cd")
    await second.finish()
    assert [piece async for piece in stream] == ["ab", "cd"]


async def test_a_duplicate_watches_the_job_there_is(client: AsyncClient, service: HandService) -> None:
    for inbox in (None, "elsewhere"):
        stream, decoder = await opened(client, service, id=f"same-{inbox}", inbox=inbox)
        await decoder.say("ab")
        again = await client.stream(job(id=stream.id), timeout_s=5).start()
        await decoder.finish("cd")
        assert [piece async for piece in again] == ["ab", "cd"]
        await stream.aclose()


async def test_a_dead_letter_that_is_replayed_starts_anew(client: AsyncClient, service: HandService) -> None:
    from headrace.models.dead_letters import read_letters, replay_letters

    stream, decoder = await opened(client, service, inbox="mine")
    await decoder.say("ab")
    await decoder.fail(Status.DEAD, FailureCode.POISON)
    letters = [letter.letter_id async for letter in read_letters(service.redis, MODEL)]
    await replay_letters(service.redis, MODEL, letters)
    [second] = await HandStream.take(service)
    assert second.delivered == []
    await second.finish("xy")
    with pytest.raises(Exception, match="by hand"):
        await rest_of(stream)
    assert stream.result is not None
    assert await rest_of(client.stream(stream.id, model=MODEL, after=stream.result.cursor, timeout_s=5)) == "xy"


async def test_the_connection_breaks_and_nothing_is_missed(client: AsyncClient, service: HandService) -> None:
    own, decoder = await opened(client, service)
    foreign, other = await opened(client, service, inbox="mine")
    for n in range(10):
        await service.redis.client_kill_filter(_type="normal", skipme=True)
        await decoder.say(f"{n} ")
        await other.say(f"{n} ")
    await decoder.finish()
    await other.finish()
    assert await rest_of(own) == await rest_of(foreign) == "0 1 2 3 4 5 6 7 8 9 "


async def test_the_synchronous_client_may_leave_in_the_middle(service: HandService, redis_url: str) -> None:
    def watch() -> tuple[str, list[int]]:
        with Client(redis_url) as client:
            stream = client.stream(Job(model=MODEL, input="?", id="sync"), timeout_s=5)
            piece = next(stream)
            stream.close()
            with client.stream("sync", model=MODEL, after=stream.cursor, timeout_s=5) as rest:
                tokens = [token for chunk in rest.chunks() for token in chunk.tokens]
                assert rest.result is not None
                assert rest.result.text == "abc"
                return piece, tokens

    watching = asyncio.create_task(asyncio.to_thread(watch))
    entries = await eventually(service.take)
    decoder = await HandStream.begin(service, entries[0])
    await decoder.say("a", "b", "c")
    await decoder.finish()
    assert await watching == ("a", [98, 99])
