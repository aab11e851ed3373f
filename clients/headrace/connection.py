"""How headrace connects to Redis: which timeouts, and what may be retried.

redis-py's defaults bite a queue twice: it retries every command ten times by itself, though the first try
may have been executed, and its 5 s socket timeout cuts longer blocking reads. So there are two kinds of
connection here. `commands` retries, and only ever carries replay-safe scripts and idempotent commands.
`reads` never retries by itself, and waits for its socket longer than the server blocks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from headrace.errors import RedisError, RedisFullError, RedisSetupError, RedisUnavailableError

__all__ = [
    "BLOCK_MS",
    "DEFAULT_URL",
    "URL_VARIABLE",
    "commands",
    "embedded_socket",
    "execute",
    "execute_together",
    "reads",
    "redacted",
    "resolve_url",
    "translated",
]

URL_VARIABLE: Final = "HEADRACE_REDIS_URL"
DEFAULT_URL: Final = "redis://localhost:6379/0"

BLOCK_MS: Final = 1000
"""How long a blocking read waits at the server. Short, so that a silent connection is noticed soon."""

_COMMAND_TIMEOUT_S: Final = 5.0
_RETRIES: Final = 4
_COMMANDS_AT_ONCE: Final = 32
"""Callers beyond this many wait for each other: redis-py's pool refuses them instead."""


def embedded_socket() -> Path:
    """Where `headrace serve` puts the socket of the server that it starts if it is given none."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "headrace" / "redis.sock"


def resolve_url(url: str | None = None) -> str:
    """The server to use: the argument, then `HEADRACE_REDIS_URL`, then a running embedded server, then the default."""
    if url:
        return url
    if from_environment := os.environ.get(URL_VARIABLE):
        return from_environment
    socket = embedded_socket()
    return f"unix://{socket}" if socket.exists() else DEFAULT_URL


def redacted(url: str) -> str:
    """The URL without its password and its query, for logs and messages, however badly it is formed."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***@" if user and colon else "***@" if at else ""
    return scheme + separator + shown + place.partition("?")[0].partition("#")[0]


def commands(url: str, *, timeout_s: float = _COMMAND_TIMEOUT_S, retries: int = _RETRIES) -> redis.asyncio.Redis:
    """A pool for replay-safe scripts and idempotent commands; it retries on lost connections and time-outs."""
    return _client(url, socket_timeout=timeout_s, retries=retries)


def reads(url: str, *, block_ms: int = BLOCK_MS) -> redis.asyncio.Redis:
    """A connection for blocking reads; every failure surfaces, since the caller knows where it stood."""
    return _client(url, socket_timeout=block_ms / 1000 + 3.0, retries=0, single_connection_client=True)


def _client(url: str, *, socket_timeout: float, retries: int, **options: Any) -> redis.asyncio.Redis:
    try:
        client = _Client.from_url(url, protocol=2, socket_connect_timeout=5.0, retry=Retry(NoBackoff(), 0), **options)
        cast(_Client, client).retries = Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)
        pool = client.connection_pool
        # What the code relies on outranks the URL's query.
        pool.connection_kwargs.update(protocol=2, decode_responses=False, socket_timeout=socket_timeout)
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):  # whose words may hold a part of the password
        raise RedisSetupError(
            f"not a Redis URL: {redacted(url)}; it must be like redis://user:password@host:6379/0, rediss://… or "
            "unix:///path, with every special character of the password percent-encoded"
        ) from None
    pool.connection_class = type("Packed", (_Packed, pool.connection_class), {})
    # Entries are read as flat field lists by their own parsers: a dict for each would be built for nothing.
    for command in ("XREAD", "XREADGROUP", "XRANGE", "XPENDING"):
        client.set_response_callback(command, cast(Any, _unchanged))
    return client


class _Client(redis.asyncio.Redis):
    """Runs a bounded number of commands at once, and tries each as a whole, connecting included.

    redis-py retries inside a retry: a command that has to connect would be tried 25 times instead of five.
    """

    retries: Retry

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = asyncio.Semaphore(_COMMANDS_AT_ONCE)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await self.attempt(partial(super().execute_command, *args, **options))

    async def attempt(self, once: Callable[[], Awaitable[Any]]) -> Any:
        """Do it, when it is its turn, as often as it takes and `retries` allows."""
        async with self._turns:
            return await self.retries.call_with_retry(once, _go_on)


async def _go_on(_error: Exception) -> None:
    """Nothing is to be done between two attempts: redis-py has closed the connection."""


class _Packed:
    """Packs commands with hiredis: redis-py does so in its synchronous connection only."""

    def pack_command(self, name: bytes | str, *args: Any) -> list[bytes]:
        words = name.split() if isinstance(name, str) else [name]  # redis-py says "XGROUP CREATE" in one piece
        return [hiredis.pack_command((*words, *args))]


def _unchanged(reply: Any, **_options: Any) -> Any:
    return reply


async def execute(client: redis.asyncio.Redis, *args: bytes | str | int) -> Any:
    """Run one command, its reply as it came; redis-py leaves this method untyped."""
    return await client.execute_command(*args)  # type: ignore[no-untyped-call]


async def execute_together(client: redis.asyncio.Redis, requests: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
    """Run idempotent commands in one round trip, their replies in order; all are tried again if one has no reply."""

    async def once() -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for request in requests:
            pipeline.execute_command(*request)
        return await pipeline.execute()

    return cast(list[Any], await cast(_Client, client).attempt(once))


@asynccontextmanager
async def translated(what: str) -> AsyncIterator[None]:
    """Turn redis-py's errors into ours, saying `what` was tried."""
    try:
        yield
    except exceptions.RedisError as error:
        raise translate(error, what) from error
    except (OSError, TimeoutError) as error:
        raise RedisUnavailableError(f"{what}: {error or type(error).__name__}") from error


_PASSING: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)


def translate(error: exceptions.RedisError, what: str) -> RedisError:
    """The error of our tree that a redis-py error stands for."""
    text, cause = str(error), error.__cause__  # an error of the handshake is the cause of a lost connection
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return RedisFullError(f"{what}: Redis is at maxmemory and refuses writes; retry later, or give it memory")
    if any(isinstance(e, (exceptions.AuthenticationError, exceptions.NoPermissionError)) for e in (error, cause)):
        return RedisSetupError(f"{what}: {text}; check the password, the user and its ACL")
    if isinstance(error, _PASSING) or text.startswith(("MISCONF", "NOREPLICAS")):
        return RedisUnavailableError(f"{what}: {text or type(error).__name__}")
    return RedisError(f"{what}: {text}")
