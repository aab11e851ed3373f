"""Looking up many jobs and answers at once, for whoever takes up work that another process began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio

from headrace.inboxes.reader import StreamEntry
from headrace.keys import keys_of
from headrace.messages.record import Record
from headrace.server.connection import execute, execute_together, translated

__all__ = ["delete_entries", "read_entries", "read_records", "read_stored"]

_AT_ONCE: Final = 512


async def read_records(client: redis.asyncio.Redis, model: str, job_ids: Sequence[str]) -> list[Record | None]:
    """The record of each job, or None where there is none: never submitted, or long ended.

    Raises:
        RedisError: they cannot be read.
        DecodeError: one of them is no record.
    """
    keys, texts = keys_of(model), list[bytes | None]()
    async with translated("reading records"):
        for start in range(0, len(job_ids), _AT_ONCE):
            names = [keys.record(job_id) for job_id in job_ids[start : start + _AT_ONCE]]
            texts += await execute(client, "MGET", *names)
    return [None if text is None else Record.parse(text) for text in texts]


async def read_entries(
    client: redis.asyncio.Redis, model: str, inbox: str, entry_ids: Sequence[str]
) -> list[StreamEntry | None]:
    """The inbox entry of each id, or None where it is gone.

    Raises:
        RedisError: they cannot be read.
    """
    key, replies = keys_of(model).inbox(inbox), list[Any]()
    async with translated("reading answers"):
        for start in range(0, len(entry_ids), _AT_ONCE):
            some = entry_ids[start : start + _AT_ONCE]
            replies += await execute_together(client, [("XRANGE", key, entry_id, entry_id) for entry_id in some])
    return [(reply[0][0], reply[0][1]) if reply else None for reply in replies]


async def read_stored(
    client: redis.asyncio.Redis, model: str, inbox: str, after: str, *, count: int = _AT_ONCE
) -> list[StreamEntry]:
    """What lies in an inbox behind a cursor, `count` entries at most, without waiting for more.

    Raises:
        RedisError: it cannot be read.
    """
    async with translated(f"reading inbox of {model}"):
        reply = await execute(client, "XRANGE", keys_of(model).inbox(inbox), f"({after}", "+", "COUNT", count)
    return [(entry[0], entry[1]) for entry in reply]


async def delete_entries(client: redis.asyncio.Redis, key: str, entry_ids: Sequence[str]) -> None:
    """Delete entries of an inbox that were consumed, if the server can be reached: else retention does it."""
    try:
        async with translated("deleting consumed answers"):
            await execute(client, "XDEL", key, *entry_ids)
    except Exception:  # retention deletes them in the end
        return
