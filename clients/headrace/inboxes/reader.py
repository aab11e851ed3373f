"""Reading inboxes: one blocking read per model and process, resumed where it stood."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis.asyncio

from headrace.errors import RedisError, RedisSetupError, WireError
from headrace.inboxes.demultiplexer import Demultiplexer
from headrace.keys import keys_of
from headrace.messages.inbox import InboxEntry
from headrace.server.backoff import Backoff
from headrace.server.connection import BLOCK_MS, execute, reads, translated
from headrace.tasks import end_task

__all__ = ["InboxReader", "entries_after"]

log = logging.getLogger("headrace.client")

_COUNT: Final = 512

StreamEntry = tuple[bytes, Sequence[bytes]]


def parse_reply(reply: Any) -> list[StreamEntry]:
    """The entries of a one-stream XREAD reply, whichever protocol version shaped it."""
    if not reply:
        return []
    streams = reply.values() if isinstance(reply, dict) else (stream[1] for stream in reply)
    return [(entry[0], entry[1]) for entries in streams for entry in entries]


async def entries_after(
    url: str,
    model: str,
    inbox: str,
    after: str,
    *,
    count: int = _COUNT,
    block_ms: int = BLOCK_MS,
    check: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[list[StreamEntry]]:
    """Batches of entries behind `after`, for ever; an outage of Redis is waited out, and nothing is skipped.

    Yields an empty list whenever a blocking read ends without news, so that the caller can stop. What `check`
    raises, who asks the server whether there is such an inbox, ends it before the first read, unless that is an outage.
    """
    connection = reads(url, block_ms=block_ms)
    key, cursor, backoff = keys_of(model).inbox(inbox), after, Backoff()
    try:
        while True:
            try:
                if check is not None:
                    await check()
                    check = None
                async with translated(f"reading inbox of {model}"):
                    if cursor == "$":
                        cursor = await _last(connection, key)
                    reply = await execute(
                        connection, "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", key, cursor
                    )
            except RedisSetupError:
                raise
            except RedisError as error:
                log.warning("%s; trying again", error)
                await backoff.pause()
                yield []
                continue
            backoff.reset()
            entries = parse_reply(reply)
            if entries:
                cursor = entries[-1][0].decode("ascii")
            yield entries
    finally:
        with suppress(Exception):
            await connection.aclose()


async def _last(connection: redis.asyncio.Redis, key: str) -> str:
    """The last entry there is now. To XREAD, "$" means another moment with every call."""
    entries = await execute(connection, "XREVRANGE", key, "+", "-", "COUNT", 1)
    return str(entries[0][0], "ascii") if entries else "0"


class InboxReader:
    """The task that reads one client's inbox of one model and feeds the demultiplexer."""

    def __init__(self, url: str, model: str, inbox: str, demultiplexer: Demultiplexer) -> None:
        self._inbox = inbox
        self._demultiplexer = demultiplexer
        self._entries = entries_after(url, model, inbox, "0")
        self._task = asyncio.create_task(self._run(), name=f"headrace-inbox-{model}")

    async def _run(self) -> None:
        try:
            async for entries in self._entries:
                for entry_id, fields in entries:
                    self._feed(entry_id, fields)
        except Exception as error:
            self._demultiplexer.fail(error)

    def _feed(self, entry_id: bytes, fields: Sequence[bytes]) -> None:
        try:
            entry = InboxEntry.parse(self._inbox, entry_id, fields)
        except WireError as error:
            log.error("skipped an inbox entry: %s", error)
            return
        if entry.status == "chunk":
            self._demultiplexer.feed_chunk(entry)
        else:
            self._demultiplexer.feed(entry)

    @property
    def failed(self) -> bool:
        """Whether reading ended by an error; everybody who waited was told."""
        return self._task.done()

    async def close(self) -> None:
        """Stop reading."""
        await end_task(self._task)
        await self._entries.aclose()
