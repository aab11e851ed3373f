"""Where a stream's entries come from: the one reader of this client's inbox, or a read of somebody else's.

Either way memory is bounded and nobody waits for a slow consumer. What the reader brings is kept up to a number of
entries; a stream that falls further behind forgets them, and reads them again from the inbox where it stands.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol

import redis.asyncio

from headrace.control import job_status
from headrace.errors import RedisFullError, RedisUnavailableError, ResultGoneError, WireError
from headrace.inboxes.demultiplexer import Demultiplexer
from headrace.inboxes.lookup import read_stored
from headrace.inboxes.reader import StreamEntry, entries_after
from headrace.keys import keys_of
from headrace.messages.inbox import InboxEntry
from headrace.server.backoff import Backoff
from headrace.server.connection import execute, translated

__all__ = ["ForeignSource", "OwnSource", "Source", "later"]

_MOST_KEPT: Final = 256
"""Entries that are kept for a consumer; at twenty chunks a second, some twelve seconds."""
_AT_ONCE: Final = 512


class Source(Protocol):
    """The chunks of one job in their order, some of them perhaps twice, then its terminal entry."""

    async def next(self, timeout_s: float | None = None) -> Sequence[InboxEntry]:
        """The next entries, at least one. May be cancelled and called again: nothing is skipped.

        Raises:
            TimeoutError: there was none for `timeout_s`.
            ResultGoneError: the answer was consumed or its retention is over.
            RedisSetupError: the inbox cannot be read.
        """
        ...

    async def close(self, *, ended: bool) -> Sequence[str]:
        """Stop. Returns the ids of chunks that nobody wants any more, if the stream has `ended`."""
        ...


def later(one: str, other: str) -> str:
    """The later of two entry ids."""
    return max(one, other, key=_number_of)


def _number_of(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _entries_of(inbox: str, job_id: str, stored: Sequence[StreamEntry]) -> list[InboxEntry]:
    """Those of one job; what cannot be read is not known to be its own, and passed over."""
    found = []
    for entry_id, fields in stored:
        try:
            entry = InboxEntry.parse(inbox, entry_id, fields)
        except WireError:
            continue
        if entry.job_id == job_id:
            found.append(entry)
    return found


class OwnSource:
    """A job of this client's own inbox: `feed` and `end` are called as its reader comes by its entries.

    Args:
        client: of the server.
        demultiplexer: of the inbox.
        model, inbox, job_id: whose entries.
        after: the entry id behind which to begin, if something lies there already; None: nothing can.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        demultiplexer: Demultiplexer,
        model: str,
        inbox: str,
        job_id: str,
        *,
        after: str | None = None,
    ) -> None:
        self._redis = client
        self._demultiplexer = demultiplexer
        self._model, self._inbox, self._job_id = model, inbox, job_id
        self._position = after or "0"
        self._behind = after is not None
        self._kept: deque[InboxEntry] = deque()
        self._ending: InboxEntry | BaseException | None = None
        self._chunk_ids: list[str] = []
        self._waiting: asyncio.Future[None] | None = None
        self._until_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        demultiplexer.watch(job_id, self.feed)

    def feed(self, entry: InboxEntry) -> None:
        """The reader came by a chunk."""
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
            self._behind = True
        if not self._behind:
            self._kept.append(entry)
        self._wake()

    def end(self, answer: InboxEntry | BaseException) -> None:
        """The terminal entry, or the error because of which none can come."""
        self._ending = answer
        self._wake()

    async def next(self, timeout_s: float | None = None) -> Sequence[InboxEntry]:
        """As `Source` has it. One consumer at a time."""
        until_s = math.inf if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        while True:
            if self._behind:
                entries = await self._caught_up(until_s)
            elif not (entries := self._at_hand()):
                await self._news(until_s)
            if entries:
                return entries

    def _at_hand(self) -> Sequence[InboxEntry]:
        if self._kept:
            entries = list(self._kept)
            self._kept.clear()
            return self._noted(entries)
        if isinstance(self._ending, BaseException):
            raise self._ending
        return [self._ending] if self._ending is not None else []

    def _noted(self, entries: Sequence[InboxEntry]) -> Sequence[InboxEntry]:
        self._chunk_ids += [entry.entry_id for entry in entries]
        return entries

    # -- waiting: a timer of its own for each of hundreds of chunks a second would cost as much as the chunk ----

    async def _news(self, until_s: float) -> None:
        """Wait for the next word of the reader, until a time of the event loop's."""
        loop = asyncio.get_running_loop()
        self._until_s, self._waiting = until_s, loop.create_future()
        if until_s < math.inf and self._timer is None:
            self._timer = loop.call_at(until_s, self._look_at_the_time)
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _look_at_the_time(self) -> None:
        """The timer of some wait: end the wait there is now, or come again when its time is up."""
        self._timer = None
        if self._waiting is None or self._waiting.done() or self._until_s == math.inf:
            return
        loop = self._waiting.get_loop()
        if loop.time() < self._until_s:
            self._timer = loop.call_at(self._until_s, self._look_at_the_time)
        else:
            self._waiting.set_exception(TimeoutError())

    # -- behind ---------------------------------------------------------------------------------------------

    async def _caught_up(self, until_s: float) -> Sequence[InboxEntry]:
        async with asyncio.timeout_at(until_s if until_s < math.inf else None):
            return self._noted(await self._catch_up())

    async def _catch_up(self) -> list[InboxEntry]:
        """Read what was forgotten; what comes meanwhile is kept again."""
        self._kept.clear()
        self._behind = False
        if self._chunk_ids:
            self._position = later(self._position, self._chunk_ids[-1])
        try:
            stored = await _patiently_read(self._redis, self._model, self._inbox, self._position)
        except BaseException:
            self._behind = True
            raise
        if stored:
            self._position = stored[-1][0].decode("ascii")
        self._behind = self._behind or len(stored) == _AT_ONCE
        return [entry for entry in _entries_of(self._inbox, self._job_id, stored) if entry.status == "chunk"]

    async def close(self, *, ended: bool) -> Sequence[str]:
        """As `Source` has it; while others watch the job, its chunks are wanted."""
        if self._timer is not None:
            self._timer.cancel()
        wanted = self._demultiplexer.unwatch(self._job_id, self.feed)
        if ended:
            return () if wanted else self._chunk_ids
        self._demultiplexer.stop_waiting(self._job_id, self.end)
        return ()


async def _patiently_read(client: redis.asyncio.Redis, model: str, inbox: str, after: str) -> list[StreamEntry]:
    backoff = Backoff()
    while True:
        try:
            return await read_stored(client, model, inbox, after, count=_AT_ONCE)
        except (RedisUnavailableError, RedisFullError):
            await backoff.pause()


class ForeignSource:
    """A job of an inbox that others read: a blocking read of this stream's own.

    Args:
        client: of the server.
        url: of the server, for the blocking read.
        model, inbox, job_id: whose entries.
        after: the entry id behind which to begin.
    """

    def __init__(
        self, client: redis.asyncio.Redis, url: str, model: str, inbox: str, job_id: str, *, after: str
    ) -> None:
        self._redis = client
        self._url = url
        self._model, self._inbox, self._job_id = model, inbox, job_id
        self._position = after
        self._reads: AsyncGenerator[list[StreamEntry]] | None = None
        self._asked = False

    async def next(self, timeout_s: float | None = None) -> Sequence[InboxEntry]:
        """As `Source` has it."""
        async with asyncio.timeout(timeout_s):
            return await self._next()

    async def _next(self) -> Sequence[InboxEntry]:
        while True:
            if not self._asked and (ending := await self._ending_before()) is not None:
                return [ending]
            self._asked = True
            stored = await self._read()
            if entries := _entries_of(self._inbox, self._job_id, stored):
                return entries
            self._asked = bool(stored)  # no news: look whether there can be any

    async def _read(self) -> list[StreamEntry]:
        if self._reads is None:
            self._reads = entries_after(self._url, self._model, self._inbox, self._position, count=_AT_ONCE)
        try:
            stored = await anext(self._reads)
        except BaseException:  # the generator is over: the next call has another
            await self.close(ended=False)
            raise
        if stored:
            self._position = stored[-1][0].decode("ascii")
        return stored

    async def _ending_before(self) -> InboxEntry | None:
        """The terminal entry, if it lies before where this reads; None while it is still to be read.

        Raises:
            ResultGoneError: it lies nowhere.
        """
        try:
            status = await job_status(self._redis, self._model, self._job_id)
            if not status.state.ended:
                return None
            key = keys_of(self._model).inbox(self._inbox)
            async with translated(f"reading the answer of job {self._job_id}"):
                stored = await execute(self._redis, "XRANGE", key, status.entry_id, status.entry_id)
        except (RedisUnavailableError, RedisFullError):
            return None
        if not stored:
            raise ResultGoneError(
                f"job {self._job_id} of {self._model} has ended, but its answer was consumed or its retention is over"
            )
        passed = later(self._position, status.entry_id) == self._position
        return InboxEntry.parse(self._inbox, *stored[0]) if passed else None

    async def close(self, *, ended: bool) -> Sequence[str]:
        """As `Source` has it; what is in this inbox is not ours to delete."""
        reads, self._reads = self._reads, None
        if reads is not None:
            await reads.aclose()
        return ()
