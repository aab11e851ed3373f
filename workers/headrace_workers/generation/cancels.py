"""Hearing of jobs that somebody called off, while they run here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from headrace.errors import RedisError
from headrace.inboxes.reader import parse_reply
from headrace.keys import keys_of
from headrace.server.backoff import Backoff
from headrace.server.connection import BLOCK_MS, execute, reads, translated

__all__ = ["CancelReader"]

log = logging.getLogger("headrace.replica")


class CancelReader:
    """Follows one model's requests to cancel, from when it is `ready`; START tells of those before.

    Args:
        url: the Redis server.
        model: its name, or that of a shard.
        cancel: gets the id of each job.
    """

    def __init__(self, url: str, model: str, cancel: Callable[[str], None]) -> None:
        self._connection = reads(url)
        self._model = model
        self._key = keys_of(model).cancels
        self._cancel = cancel
        self._after = ""
        self._ready = asyncio.Event()

    async def ready(self) -> None:
        """Return when no request will be missed."""
        await self._ready.wait()

    async def run(self) -> None:
        """Read until cancelled. An outage of Redis is waited out."""
        backoff = Backoff()
        try:
            while True:
                try:
                    async with translated(f"reading cancellations of {self._model}"):
                        await self._step()
                except RedisError as error:
                    log.warning("%s; trying again", error)
                    await backoff.pause()
                else:
                    backoff.reset()
        finally:
            with suppress(Exception):
                await self._connection.aclose()

    async def _step(self) -> None:
        if not self._after:
            last: Any = await execute(self._connection, "XREVRANGE", self._key, "+", "-", "COUNT", 1)
            self._after = str(last[0][0], "ascii") if last else "0"
            self._ready.set()
        reply = await execute(
            self._connection, "XREAD", "COUNT", 1000, "BLOCK", BLOCK_MS, "STREAMS", self._key, self._after
        )
        for entry_id, fields in parse_reply(reply):
            self._after = str(entry_id, "ascii")
            self._cancel(str(fields[1], "ascii", "replace"))
