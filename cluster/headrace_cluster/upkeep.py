"""What a router does for its model now and then, beside routing: take over from the dead, promote, cancel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import redis.asyncio

from headrace import scripts
from headrace.connection import execute, translated
from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.scripts import Reaped
from headrace.server_clock import ServerClock

__all__ = ["Leaseholder", "Upkeep"]

log = logging.getLogger("headrace.router")

_EVERY_S: Final = 0.25
_SECOND_LOOK_EVERY: Final = 120
_REAP_AT_ONCE: Final = 64
_LOOK_BACK_MS: Final = 60_000
"""How far back a new router reads requests to cancel; what it takes over carries its own."""


class Leaseholder(Protocol):
    """What is asked of a `Lease`."""

    consumer: str

    async def wait_held(self) -> None:
        """Return when nobody takes over what this consumer holds."""
        ...

    @property
    def may_reap(self) -> bool:
        """Whether consumers without a heartbeat are dead for certain."""
        ...

    @property
    def lapses(self) -> int:
        """How often others may have taken over what this consumer held."""
        ...


class Upkeep:
    """The rounds of one router.

    Args:
        model: whose lanes.
        client: for commands; it tries none of them twice by itself.
        lease: of the consumer that takes over.
        clock: looked at the server's time now and then.
        room: how many jobs may be taken over now.
        take_over: gets jobs of dead consumers.
        look_again: looks at everything that this consumer holds.
        cancel: gets the ids of jobs that somebody wants cancelled.
    """

    def __init__(
        self,
        model: str,
        client: redis.asyncio.Redis,
        lease: Leaseholder,
        clock: ServerClock,
        *,
        room: Callable[[], int],
        take_over: Callable[[Sequence[Reaped]], None],
        look_again: Callable[[], None],
        cancel: Callable[[Sequence[str]], None],
    ) -> None:
        self._model = model
        self._client = client
        self._lease = lease
        self._clock = clock
        self._room = room
        self._take_over = take_over
        self._look_again = look_again
        self._cancel = cancel
        self._cancels_after = ""
        self._rounds = 0

    async def run(self) -> None:
        """Go round until cancelled. An outage of Redis is waited out."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self._once()
            except RedisError as error:
                log.debug("upkeep of %s: %s", self._model, error)

    async def _once(self) -> None:
        self._rounds += 1
        await scripts.sweep(self._client, self._model)
        await self._read_cancels()
        if self._rounds % 2 == 0:
            await self._reap()
        if self._rounds % _SECOND_LOOK_EVERY == 0:
            await self._clock.look(self._client)

    async def _reap(self) -> None:
        while self._lease.may_reap and (room := min(_REAP_AT_ONCE, self._room())) > 0:
            try:
                reaped = await scripts.reap(self._client, self._model, self._lease.consumer, room)
            except RedisError:
                self._look_again()  # they may be ours, and the list of them lost on its way
                raise
            if reaped:
                log.warning("took %d jobs of %s over from routers that died", len(reaped), self._model)
                self._take_over(reaped)
            if len(reaped) < room:
                return

    async def _read_cancels(self) -> None:
        after = self._cancels_after or str(self._clock.now_ms() - _LOOK_BACK_MS)
        async with translated(f"reading cancellations of {self._model}"):
            entries: Any = await execute(
                self._client, "XRANGE", keys_of(self._model).cancels, f"({after}", "+", "COUNT", 1000
            )
        if entries:
            self._cancels_after = str(entries[-1][0], "ascii")
            self._cancel([str(fields[1], "ascii", "replace") for _, fields in entries])
        else:
            self._cancels_after = after
