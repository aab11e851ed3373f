"""Which Redis, and how it is reached: one server, the master that sentinels watch, or a cluster.

==============================================  ==========================================================
``redis://user:password@host:6379/0``           one server; ``rediss://`` for TLS
``unix:///run/redis.sock?db=0``                 one server on this machine
``redis+sentinel://host:26379,host2/name/0``    the master of the service `name`; ``rediss+sentinel://`` for TLS
``redis+cluster://host:6379,host2:6379``        a Redis Cluster, known by some of its nodes; ``rediss+cluster://``
==============================================  ==========================================================

Options stand in the query and have redis-py's names (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` …); what
sentinels themselves ask for is `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from headrace.errors import RedisSetupError

__all__ = [
    "DEFAULT_URL",
    "URL_VARIABLE",
    "ServerUrl",
    "embedded_socket",
    "redacted",
    "resolve_url",
    "unusable",
    "with_tls",
]

URL_VARIABLE: Final = "HEADRACE_REDIS_URL"
DEFAULT_URL: Final = "redis://localhost:6379/0"

Topology = Literal["single", "sentinel", "cluster"]

_PORTS: Final = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_OURS: Final = ("sentinel_username", "sentinel_password")
_MAX_PORT: Final = 65_535


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


def with_tls(
    url: str, *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> str:
    """The URL with certificate files in its query, which outrank those that stand there already."""
    files = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
    given = {name: str(file) for name, file in files.items() if file is not None}
    if not given:
        return url
    place, _, query = url.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query) if name not in given]
    return f"{place}?{urlencode([*kept, *given.items()], quote_via=quote)}"


def unusable(url: str) -> RedisSetupError:
    """The error for a URL that cannot be made sense of, without any part of it that may be secret."""
    return RedisSetupError(
        f"not a Redis URL: {redacted(url)}; it must be like redis://user:password@host:6379/0, rediss://…, "
        "unix:///path, redis+sentinel://host:26379,host2:26379/service/0 or redis+cluster://host:6379,host2:6379, "
        "with every special character of the password percent-encoded"
    )


@dataclass(frozen=True, slots=True, repr=False)
class ServerUrl:
    """A URL taken apart. It knows passwords, so its `repr` is short."""

    topology: Topology
    hosts: tuple[tuple[str, int], ...]
    """The server, the sentinels, or some nodes of the cluster; empty for a socket."""
    service: str
    """What the sentinels call the master."""
    options: dict[str, Any]
    """What a connection is made with, as redis-py names it, without host and port."""
    sentinel_options: dict[str, Any]
    """The credentials that sentinels themselves ask for."""
    secure: bool
    """Whether connections are made with TLS."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, {self.hosts!r})"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a URL apart.

        Raises:
            RedisSetupError: it is none, or leads nowhere; without repeating any part that may be secret.
        """
        try:
            return cls._parse(url)
        except (ValueError, TypeError):  # whose words may hold a part of the password
            raise unusable(url) from None

    @classmethod
    def _parse(cls, url: str) -> Self:
        scheme, separator, rest = url.partition("://")
        plain, _, kind = scheme.partition("+")
        if not separator or (kind and (plain not in ("redis", "rediss") or kind not in ("sentinel", "cluster"))):
            raise ValueError
        topology: Topology = "single" if not kind else "sentinel" if kind == "sentinel" else "cluster"
        if topology == "single":
            return cls._of(topology, parse_url(url), url)
        credentials, at, place = rest.rpartition("@") if "@" in rest.partition("?")[0] else ("", "", rest)
        netloc, path, query = _split(place)
        first = netloc.split(",")[0]
        service, database = _service_and_database(topology, path)
        parsed = cls._of(topology, parse_url(f"{plain}://{credentials}{at}{first}/{database}{query}"), url)
        return replace(parsed, hosts=_hosts(netloc, topology), service=service)

    @classmethod
    def _of(cls, topology: Topology, parsed: Any, url: str) -> Self:
        options = dict(parsed)
        sentinel = {name.removeprefix("sentinel_"): options.pop(name) for name in _OURS if name in options}
        host, port = options.pop("host", "localhost"), options.pop("port", _PORTS[topology])
        secure = options.pop("connection_class", None) is SSLConnection
        if topology == "single":
            _ = urlsplit(url).port  # raises where it is no number
        return cls(topology, () if "path" in options else ((host, port),), "", options, sentinel, secure)


def _split(place: str) -> tuple[str, str, str]:
    """Hosts, path, and query with its question mark."""
    before, mark, query = place.partition("?")
    netloc, _, path = before.partition("/")
    parse_qs(query, strict_parsing=bool(query))
    return netloc, path, mark + query


def _service_and_database(topology: Topology, path: str) -> tuple[str, str]:
    parts = [part for part in path.split("/") if part]
    if topology == "cluster":
        if parts not in ([], ["0"]):  # a cluster knows one database
            raise ValueError
        return "", ""
    if not 1 <= len(parts) <= 2 or not parts[-1 if len(parts) == 1 else 1].isascii():
        raise ValueError
    if len(parts) == 2 and not parts[1].isdecimal():
        raise ValueError
    return parts[0], parts[1] if len(parts) == 2 else ""


def _hosts(netloc: str, topology: Topology) -> tuple[tuple[str, int], ...]:
    return tuple(_host(text, _PORTS[topology]) for text in netloc.split(","))


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")  # knows IPv6 in brackets, and raises for a port that is no number
    if not parts.hostname or parts.username is not None:
        raise ValueError
    if parts.port is not None and not 0 < parts.port <= _MAX_PORT:
        raise ValueError
    return parts.hostname, parts.port or port
