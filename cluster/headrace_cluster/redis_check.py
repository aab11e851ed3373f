"""Whether a Redis server fits headrace: it answers, is new enough, takes writes, and never throws a job away."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from headrace.connection import commands, execute, redacted, translated
from headrace.errors import RedisSetupError

__all__ = ["RedisReport", "check_redis"]

_TIMEOUT_S: Final = 5.0
_LEAST: Final = {"redis": (7, 0), "valkey": (7, 2)}


class RedisReport(NamedTuple):
    """What a server that fits said of itself."""

    server: str
    """`redis` or `valkey`."""
    version: str
    append_only: bool
    """Whether it keeps an append-only file; without one, a crash of the server loses every job in it."""


async def check_redis(url: str) -> RedisReport:
    """Ask the server once, without trying again.

    Raises:
        RedisUnavailableError: it does not answer within five seconds.
        RedisSetupError: it does not fit, or lets nobody in with these credentials; the message names the fix.
    """
    shown = redacted(url)
    client = commands(url, timeout_s=_TIMEOUT_S, retries=0)
    try:
        async with translated(f"reaching Redis at {shown}"):
            info = await execute(client, "INFO")
    finally:
        await client.aclose()
    if fault := _fault(info):
        raise RedisSetupError(f"Redis at {shown} {fault}")
    server, version = _version(info)
    return RedisReport(server, version, bool(int(info.get("aof_enabled", 0))))


def _version(info: dict[str, Any]) -> tuple[str, str]:
    server = "valkey" if "valkey_version" in info else "redis"
    return server, str(info.get(f"{server}_version", ""))


def _fault(info: dict[str, Any]) -> str | None:
    """Why the server does not fit, and what would change that."""
    server, version = _version(info)
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    least = _LEAST[server]
    if number and number < least:
        return f"is {server} {version}; headrace needs {server} {least[0]}.{least[1]} or newer"
    if info.get("redis_mode", "standalone") != "standalone":
        return f"runs as {info['redis_mode']}; name a server that stands alone, or the master that a sentinel watches"
    if info.get("role", "master") != "master":
        return "is a replica and takes no writes; name its master"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return f"evicts keys when memory is short, and jobs with them ({policy}); set maxmemory-policy to noeviction"
    return None
