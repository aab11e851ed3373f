"""Calling replicas, and giving up on one that says nothing for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

from headrace.errors import RedisError
from headrace.tasks import end_task
from headrace_cluster.pools.port import PoolPort
from headrace_cluster.slots.ledger import Slot
from headrace_workers.generation.batch_call import LIFE_S

__all__ = ["ReplicaCalls"]

log = logging.getLogger("headrace.router")

T = TypeVar("T")

_SILENCE_S: Final = 3 * LIFE_S
"""After how long a replica that should give signs of life is left alone until it does."""
_END: Final = b""
"""No message of a replica is empty."""


class ReplicaCalls:
    """The calls of one model's router.

    Args:
        model: whose replicas.
        pool: where they are.
        timeout_s: how long a replica may say nothing.
        look: asks Redis for something; raises `RedisError` while it is away.
        suspend: is told of a replica that has said nothing for half of that time, or of one that should have given a
            sign of life, and for how long to leave it alone.
        resume: is told of one that was suspended for its silence and said something.
    """

    def __init__(
        self,
        model: str,
        pool: PoolPort,
        *,
        timeout_s: float,
        look: Callable[[], Awaitable[None]],
        suspend: Callable[[Slot, float], None],
        resume: Callable[[Slot], None],
    ) -> None:
        self._model = model
        self._pool = pool
        self._timeout_s = timeout_s
        self._look = look
        self._suspend = suspend
        self._resume = resume

    async def run(self, slot: Slot, message: bytes) -> bytes:
        """Have a replica run a batch; its one reply.

        Raises:
            ReplicaLostError, BatchFailedError: what the pool raises.
            TimeoutError: it took too long, and was killed.
        """
        return await self._in_time(slot, self._pool.call(slot.replica, message))

    async def stream(self, slot: Slot, message: bytes) -> AsyncGenerator[bytes]:
        """The same for a replica that replies with many messages, each of which says that it lives."""
        async with aclosing(self._pool.stream(slot.replica, message)) as messages:
            while (said := await self._in_time(slot, self._unless_silent(slot, _next(messages)))) != _END:
                yield said

    async def _unless_silent(self, slot: Slot, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for what a replica says that gives signs of life. Without any it gets nothing new."""
        message = asyncio.create_task(waiting)
        try:
            await asyncio.wait({message}, timeout=_SILENCE_S)
            if message.done():
                return message.result()
            log.warning("nothing was heard of %s at %s for %s s", self._model, slot.replica, _SILENCE_S)
            self._suspend(slot, self._timeout_s)
            said = await message
            self._resume(slot)
            return said
        finally:
            if not message.done():
                await end_task(message)

    async def _in_time(self, slot: Slot, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for what a replica says. One that says nothing in time is killed.

        While Redis is away a replica has no way to finish, and the time stands still.
        """
        call = asyncio.create_task(waiting)
        half_s = self._timeout_s / 2
        try:
            late = False
            while True:
                await asyncio.wait({call}, timeout=half_s)
                if call.done():
                    return call.result()
                with suppress(RedisError):
                    await self._look()
                    if call.done():
                        return call.result()
                    if late:
                        await self._pool.kill(slot.replica)
                        raise TimeoutError(f"no outcome after {self._timeout_s} s; the replica is killed")
                    late = True
                    log.warning("a batch of %s at %s takes over %s s", self._model, slot.replica, half_s)
                    self._suspend(slot, half_s)
        finally:
            if not call.done():
                await end_task(call)


async def _next(messages: AsyncGenerator[bytes]) -> bytes:
    return await anext(messages, _END)
