"""What a Redis server says of itself, as far as it matters to a queue: read once, judged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

from headrace.server.redis_client import execute
from headrace.server.redis_errors import translated

__all__ = ["ServerFacts", "read_facts", "read_greeting"]

Kind = Literal["redis", "valkey"]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One server at one moment."""

    kind: Kind
    version: tuple[int, int, int]
    """All zeros if the server does not tell."""
    mode: str = "standalone"
    """`standalone`, `cluster` or `sentinel`."""
    role: str = "master"
    """`master`, or `slave` for a replica, which takes no writes."""
    append_only: bool = True
    fsync: str | None = None
    """`always`, `everysec` or `no`; None if CONFIG may not be read."""
    policy: str = "noeviction"
    memory_limit_bytes: int = 0
    """0 is none."""
    memory_used_bytes: int = 0

    @classmethod
    def parse(cls, info: Mapping[str, Any], fsync: str | None) -> Self:
        """Read the reply to INFO."""
        kind: Kind = "valkey" if "valkey_version" in info else "redis"
        return cls(
            kind=kind,
            version=_version(str(info.get(f"{kind}_version", ""))),
            mode=str(info.get("server_mode") or info.get("redis_mode") or "standalone"),
            role=str(info.get("role", "master")),
            append_only=bool(int(info.get("aof_enabled", 0))),
            fsync=fsync,
            policy=str(info.get("maxmemory_policy", "noeviction")),
            memory_limit_bytes=int(info.get("maxmemory", 0)),
            memory_used_bytes=int(info.get("used_memory", 0)),
        )

    @property
    def name(self) -> str:
        """What to call it: `valkey 9.1.2`."""
        return f"{self.kind} {'.'.join(map(str, self.version))}" if any(self.version) else self.kind

    @property
    def durability(self) -> Literal["always", "everysec", "none"] | None:
        """The mode of docs/durability.md that its settings amount to; None if they cannot all be read."""
        if not self.append_only:
            return "none"
        if self.fsync in ("always", "everysec"):
            return self.fsync  # type: ignore[return-value]
        return None if self.fsync is None else "none"


def _version(text: str) -> tuple[int, int, int]:
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(".")[:3]]
    return (*numbers, 0, 0, 0)[:3]  # type: ignore[return-value]


async def read_facts(client: redis.asyncio.Redis) -> ServerFacts:
    """Ask a server what it is and how it is set up.

    Raises:
        RedisError: it does not answer, or INFO is not allowed.
    """
    async with translated("asking Redis what it is"):
        info = await execute(client, "INFO")
        settings = await _settings(client)
    return ServerFacts.parse(info, settings.get("appendfsync"))


async def read_greeting(client: redis.asyncio.Redis) -> ServerFacts:
    """As much of it as every user may ask for: kind and version, and whatever else CONFIG tells, if it may be read.

    Raises:
        RedisError: it does not answer.
    """
    async with translated("asking Redis what it is"):
        greeting = _pairs(await execute(client, "HELLO"))
        settings = await _settings(client)
    kind = greeting.get("server", "redis")
    return ServerFacts.parse(
        {f"{kind}_version": greeting.get("version", ""), "aof_enabled": settings.get("appendonly") != "no"},
        settings.get("appendfsync"),
    )


async def _settings(client: redis.asyncio.Redis) -> dict[str, str]:
    try:
        return _pairs(await execute(client, "CONFIG", "GET", "append*"))
    except (NoPermissionError, ResponseError):  # no right to it, or a hosted server that has renamed the command
        return {}


def _pairs(reply: Any) -> dict[str, str]:
    """Names and values of a flat reply, as far as both are text."""
    flat = [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in reply]
    return {name: value for name, value in zip(flat[::2], flat[1::2], strict=True) if isinstance(value, str)}
