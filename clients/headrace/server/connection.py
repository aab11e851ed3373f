"""How headrace connects to Redis: which timeouts, and what may be retried.

redis-py's defaults bite a queue twice: it retries every command ten times by itself, though the first try
may have been executed, and its 5 s socket timeout cuts longer blocking reads. So there are two kinds of
connection here. `commands` retries, and only ever carries replay-safe scripts and idempotent commands.
`reads` never retries by itself, and waits for its socket longer than the server blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final, cast

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from headrace.server.cluster_client import ClusterClient
from headrace.server.fsync import FsyncedClient
from headrace.server.redis_client import RedisClient, Request, execute, packed
from headrace.server.redis_errors import translate, translated
from headrace.server.tls import TlsConnection, TlsSentinelConnection, context_of
from headrace.server.url import (
    DEFAULT_URL,
    URL_VARIABLE,
    ServerUrl,
    embedded_socket,
    redacted,
    resolve_url,
    unusable,
)

__all__ = [
    "BLOCK_MS",
    "DEFAULT_URL",
    "URL_VARIABLE",
    "commands",
    "embedded_socket",
    "execute",
    "execute_near",
    "execute_together",
    "masters",
    "reads",
    "redacted",
    "resolve_url",
    "translate",
    "translated",
]

BLOCK_MS: Final = 1000
"""How long a blocking read waits at the server. Short, so that a silent connection is noticed soon."""

_COMMAND_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0
_RETRIES: Final = 4
_FSYNC_SHARE: Final = 0.8
"""Of a command's timeout: the server has to answer before the socket gives up."""

_Node = Callable[..., RedisClient]
"""Makes the client of one server, given its connections."""


def commands(
    url: str, *, timeout_s: float = _COMMAND_TIMEOUT_S, retries: int = _RETRIES, fsynced: bool = False
) -> redis.asyncio.Redis:
    """A pool for replay-safe scripts and idempotent commands; it retries on lost connections and time-outs.

    Args:
        url: as `headrace.server.url` tells.
        timeout_s: how long one attempt may take.
        retries: how many attempts may follow the first.
        fsynced: whether a script returns only when its writes are on the server's disk.

    Raises:
        RedisSetupError: the URL is none, or its certificates cannot be used.
    """
    if fsynced:
        node: _Node = partial(FsyncedClient, within_s=timeout_s * _FSYNC_SHARE)
    else:
        node = RedisClient
    return _connect(url, timeout_s=timeout_s, retries=retries, node=node)


def reads(url: str, *, block_ms: int = BLOCK_MS) -> redis.asyncio.Redis:
    """A connection for blocking reads; every failure surfaces, since the caller knows where it stood."""
    return _connect(url, timeout_s=block_ms / 1000 + 3.0, retries=0, node=partial(RedisClient, single=True))


def _connect(url: str, *, timeout_s: float, retries: int, node: _Node) -> redis.asyncio.Redis:
    server = ServerUrl.parse(url)
    # What the code relies on outranks the URL's query.
    options = server.options | {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        **_driver(),
    }
    kind: type[AbstractConnection] = UnixDomainSocketConnection if "path" in options else Connection
    if server.secure:
        options["tls"] = context_of(options)
        kind = TlsConnection
    try:
        match server.topology:
            case "single":
                return node(_pool(kind, options, *server.hosts), retries=retries)
            case "sentinel":
                # A client that keeps to one connection would reconnect to where the master was, and ask nobody.
                return node(_watched_pool(server, kind, options), retries=retries, single=False)
            case "cluster":
                connect = partial(_connect_node, kind, options, node)
                first = _pool(kind, options, server.hosts[0])
                return ClusterClient(first, seeds=server.hosts, connect=connect, retries=retries)
    except (TypeError, ValueError):  # an option that no connection has
        raise unusable(url) from None


@cache
def _driver() -> dict[str, Any]:
    """What every connection tells the server of its library: redis-py would read it from its package's metadata each
    time anew, which takes longer than to connect."""
    try:
        from redis.driver_info import DriverInfo
    except ImportError:  # redis-py has it from 7.2 on
        return {}
    return {"driver_info": DriverInfo()}


def _pool(kind: type[AbstractConnection], options: dict[str, Any], *host: tuple[str, int]) -> ConnectionPool:
    place: dict[str, Any] = dict(zip(("host", "port"), host[0], strict=True)) if host else {}
    pool: ConnectionPool = ConnectionPool(connection_class=packed(kind), **place, **options)
    pool.make_connection()  # type: ignore[no-untyped-call]  # which finds out that an option is none
    return pool


def _connect_node(
    kind: type[AbstractConnection], options: dict[str, Any], node: _Node, address: tuple[str, int]
) -> RedisClient:
    """The client of one node of a cluster; the cluster's client tries again, not this one."""
    return node(_pool(kind, options, address), retries=0)


def _watched_pool(server: ServerUrl, kind: type[AbstractConnection], options: dict[str, Any]) -> ConnectionPool:
    """Connections to whichever server the sentinels call the master at the time."""
    own = {name: value for name, value in options.items() if name not in ("db", "username", "password", "client_name")}
    sentinels: Any = Sentinel([])  # type: ignore[no-untyped-call]
    sentinels.sentinels = [
        RedisClient(_pool(kind, own | server.sentinel_options, address), retries=0) for address in server.hosts
    ]
    watched = packed(TlsSentinelConnection if server.secure else SentinelManagedConnection)
    pool = _WatchedPool(server.service, sentinels, connection_class=watched, **options)  # type: ignore[no-untyped-call]
    pool.make_connection()  # type: ignore[no-untyped-call]
    return pool


class _WatchedPool(SentinelConnectionPool):
    """Closes the connections to the sentinels with its own."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


async def execute_near(client: redis.asyncio.Redis, key: str, *args: bytes | str | int) -> Any:
    """Run a command that names no key on the server where `key` lies: of a cluster, the node that has its slot."""
    return await cast(RedisClient, client).execute_near(key, *args)


async def execute_together(client: redis.asyncio.Redis, requests: Sequence[Request]) -> list[Any]:
    """Run idempotent commands in one round trip, their replies in order; all are tried again if one has no reply.

    On a cluster it is a round trip to each node that has one of their keys, all at the same time.
    """
    return await cast(RedisClient, client).execute_together(requests)


async def masters(client: redis.asyncio.Redis) -> Sequence[redis.asyncio.Redis]:
    """The servers behind a client that take writes: one, or those of a cluster."""
    return await cast(RedisClient, client).masters()
