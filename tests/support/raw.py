"""What other producers, or nobody in his right mind, may write into a lane: entries by hand."""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio

from headrace.codec import pack
from headrace.keys import keys_of
from headrace.server.connection import execute

__all__ = ["envelope", "write_entry"]


def envelope(job_id: str, *, inbox: str = "raw", **words: Any) -> bytes:
    """An envelope of wire version 1, with single words replaced."""
    given = {
        "version": 1,
        "id": job_id,
        "inbox": inbox,
        "tenant": "default",
        "attempt": 1,
        "deadline": 0,
        "submitted": int(time.time() * 1000),
        "token": "00000000",
        "trace": "-",
        **words,
    }
    return " ".join(str(word) for word in given.values()).encode()


async def write_entry(
    client: redis.asyncio.Redis,
    model: str,
    *,
    priority: int = 1,
    entry_id: str = "*",
    text: bytes = b"",
    payload: bytes | None = None,
    fields: dict[str, bytes] | None = None,
) -> str:
    """Put an entry into a lane as it stands, past every check, and count it as submitted."""
    keys = keys_of(model)
    given = {"e": text, "p": pack({"input": "raw"}) if payload is None else payload} if fields is None else fields
    flat: list[str | bytes] = [part for pair in given.items() for part in pair]
    written = await execute(client, "XADD", keys.lanes[priority], entry_id, *flat)
    await execute(client, "HINCRBY", keys.counters, "submitted", 1)
    await execute(client, "HINCRBY", keys.tenants, "default", 1)
    return str(written, "ascii")
