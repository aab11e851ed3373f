"""What a stream of this client's own inbox waits for: the reader's next word, for so long, without losing one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.errors import ResultGoneError
from headrace.inboxes.demultiplexer import Demultiplexer
from headrace.messages import InboxEntry
from headrace.streaming import source as stream_source
from headrace.streaming.source import OwnSource

BEHIND: Any = None
"""A client that is not asked: what is stored is what a test says."""


def chunk(number: int) -> InboxEntry:
    return InboxEntry("box", f"{number}-0", "a", "chunk", 1, b"")


@pytest.fixture
def demultiplexer() -> Demultiplexer:
    return Demultiplexer()


@pytest.fixture
def source(demultiplexer: Demultiplexer) -> OwnSource:
    return OwnSource(BEHIND, demultiplexer, "m", "box", "a")


async def test_what_comes_while_it_waits(demultiplexer: Demultiplexer, source: OwnSource) -> None:
    """Together, if they come together."""
    waiting = asyncio.create_task(source.next(5))
    await asyncio.sleep(0)
    for number in (1, 2):
        demultiplexer.feed_chunk(chunk(number))
    assert await waiting == [chunk(1), chunk(2)]


async def test_nothing_comes_in_time(demultiplexer: Demultiplexer, source: OwnSource) -> None:
    """Each wait has its own time, though one timer serves them all; the next one begins anew."""
    loop = asyncio.get_running_loop()
    for number in range(1, 4):
        loop.call_later(0.06, demultiplexer.feed_chunk, chunk(number))
        assert await source.next(0.12) == [chunk(number)]  # together longer than one may be
    began_s = loop.time()
    for timeout_s in (0.05, 0.1):
        with pytest.raises(TimeoutError):
            await source.next(timeout_s)
    assert 0.14 <= loop.time() - began_s < 5
    demultiplexer.feed_chunk(chunk(9))
    assert await source.next(0.05) == [chunk(9)]
    await source.close(ended=True)


async def test_a_wait_that_was_given_up(demultiplexer: Demultiplexer, source: OwnSource) -> None:
    """Nothing is skipped, and its time is nobody else's."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await source.next(0.04)
    waiting = asyncio.create_task(source.next())
    await asyncio.sleep(0.06)
    assert not waiting.done()
    demultiplexer.feed_chunk(chunk(1))
    assert await waiting == [chunk(1)]


async def test_what_comes_while_it_reads_again(
    demultiplexer: Demultiplexer, source: OwnSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the inbox had: nobody will say it a second time."""
    asked = []

    async def stored(_client: object, _model: str, _inbox: str, after: str, *, count: int) -> list[Any]:
        asked.append((after, count))
        demultiplexer.feed_chunk(chunk(8))
        source.end(ResultGoneError("gone"))
        return []

    monkeypatch.setattr(stream_source, "_MOST_KEPT", 2)
    monkeypatch.setattr(stream_source, "read_stored", stored)
    demultiplexer.feed_chunk(chunk(1))
    assert await source.next(1) == [chunk(1)]
    for number in (5, 6, 7):
        demultiplexer.feed_chunk(chunk(number))
    assert await source.next(1) == [chunk(8)]
    assert asked == [("1-0", 512)]
    with pytest.raises(ResultGoneError):
        await source.next(1)
    await source.close(ended=True)


async def test_a_closed_one_has_no_timer(source: OwnSource) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await source.next(60)
    assert source._timer in loop._scheduled  # type: ignore[attr-defined]
    await source.close(ended=True)
    assert source._timer is not None
    assert source._timer.cancelled()
