"""redis-py's client, made fit for a queue: what is tried again and when, and how much goes on at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, cast

import hiredis
import redis.asyncio
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from headrace.server.redis_errors import is_lasting
from headrace.tasks import cancellation_kept, to_its_end

__all__ = ["RedisClient", "Request", "execute", "go_on", "packed"]

Request = Sequence[bytes | str | int]
"""A command as its words."""

_COMMANDS_AT_ONCE: Final = 32
"""Callers beyond this many wait for each other: redis-py's pool refuses them instead."""
_AGAIN: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
"""What another attempt may cure."""
_FLAT: Final = ("XREAD", "XREADGROUP", "XRANGE", "XPENDING")
"""Entries are read as flat field lists by their own parsers: a dict for each would be built for nothing."""


class RedisClient(redis.asyncio.Redis):
    """Runs a bounded number of commands at once, and tries each as a whole, connecting included.

    redis-py retries inside a retry: a command that has to connect would be tried 25 times instead of five.

    Args:
        pool: where connections come from; it is closed with the client.
        retries: how often a command is tried again.
        single: whether it keeps to one connection.
    """

    def __init__(self, pool: ConnectionPool, *, retries: int, single: bool = False) -> None:
        super().__init__(connection_pool=pool, single_connection_client=single)
        self.auto_close_connection_pool = True
        self._retries = Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries, _AGAIN)
        self._turns = asyncio.Semaphore(_COMMANDS_AT_ONCE)
        for command in _FLAT:
            self.set_response_callback(command, cast(Any, _unchanged))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections, whatever cancels the task that does so: redis-py would leave some open."""
        await to_its_end(super().aclose(close_connection_pool))

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, when it is its turn."""
        return await self.attempt(partial(super().execute_command, *args, **options))

    async def attempt(self, once: Callable[[], Awaitable[Any]]) -> Any:
        """Do it, when it is its turn, as often as it takes and `retries` allows."""
        async with self._turns:
            with cancellation_kept():
                return await self._retries.call_with_retry(once, go_on)

    async def execute_together(self, requests: Sequence[Request]) -> list[Any]:
        """Run idempotent commands in one round trip; all are tried again if one has no reply."""
        return cast(list[Any], await self.attempt(partial(self.send_together, requests)))

    async def send_together(self, requests: Sequence[Request], *, raising: bool = True) -> list[Any]:
        """Send commands over one connection, one behind the other, once.

        With `raising` the first error is raised, else errors stand among the replies.
        """
        pipeline = self.pipeline(transaction=False)
        for request in requests:
            pipeline.execute_command(*request)
        # redis-py would put the first of the command's arguments into the error: parts of jobs.
        replies = await pipeline.execute(raise_on_error=False)
        if raising and (error := next((reply for reply in replies if isinstance(reply, Exception)), None)):
            raise error
        return replies

    async def execute_near(self, _key: str, *args: Any) -> Any:
        """Run a command that names no key where `_key` lies: there is one place only."""
        return await self.execute_command(*args)

    async def masters(self) -> Sequence[RedisClient]:
        """The servers behind it that take writes."""
        return [self]


async def go_on(error: Exception) -> None:
    """Before another attempt: redis-py has closed the connection, and there is no use in an error that will last."""
    if is_lasting(error):
        raise error


def packed(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same kind of connection, with commands packed by hiredis: redis-py does so in its synchronous one only."""
    return type("Packed", (_Packed, connection_class), {})


class _Packed:
    def pack_command(self, name: bytes | str, *args: Any) -> list[bytes]:
        words = name.split() if isinstance(name, str) else [name]  # redis-py says "XGROUP CREATE" in one piece
        return [hiredis.pack_command((*words, *args))]


def _unchanged(reply: Any, **_options: Any) -> Any:
    return reply


async def execute(client: redis.asyncio.Redis, *args: bytes | str | int) -> Any:
    """Run one command, its reply as it came; redis-py leaves this method untyped."""
    return await client.execute_command(*args)  # type: ignore[no-untyped-call]
