"""Whether the Redis server is fit and well: what `server_check` asks of it, and how it is doing at present."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

from headrace.doctor.diagnosis import Diagnosis, Level
from headrace.doctor.server_health import SUBJECT, WHY_EVICTION_MATTERS, ServerHealth, judge_health
from headrace.errors import (
    HeadraceError,
    RedisDurabilityError,
    RedisEvictionError,
    RedisRoleError,
    RedisSetupError,
    RedisUnavailableError,
    RedisVersionError,
)
from headrace.server.check import Durability, judge
from headrace.server.connection import commands, execute, masters, redacted, translated
from headrace.server.facts import ServerFacts, read_facts
from headrace.server.url import ServerUrl

__all__ = ["examine_redis"]

_TRIPS: Final = 21
_TIMEOUT_S: Final = 5.0
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")

_WHY: Final[Mapping[type[RedisSetupError], str]] = {
    RedisVersionError: "the code relies on what newer releases do, and known holes let others run code on the server",
    RedisRoleError: "jobs are handed over by writing, which only a master takes",
    RedisEvictionError: WHY_EVICTION_MATTERS,
    RedisDurabilityError: "what a crash takes was acknowledged before (docs/durability.md)",
    RedisSetupError: "new jobs are refused until there is room",
}


async def examine_redis(url: str, *, durability: Durability | None = None) -> list[Diagnosis]:
    """Ask a server, or each master of a cluster, how it is set up and how it is doing. It never raises.

    Args:
        url: as `headrace.server.url` tells.
        durability: the least that it must keep through a crash; None insists on nothing.
    """
    try:
        server = ServerUrl.parse(url)
        client = commands(url, timeout_s=_TIMEOUT_S, retries=0)
    except HeadraceError as error:
        fix = "see --redis-url in `headrace doctor --help`"
        return [Diagnosis(SUBJECT, Level.ERROR, str(error), "without a server there are no jobs", fix)]
    try:
        async with translated("asking Redis what it is"):
            nodes = await masters(client)
        found = [diagnosis for node in nodes for diagnosis in await _examine_node(node, server, durability)]
        return list(dict.fromkeys(found))
    except HeadraceError as error:
        return [_away(url, error)]
    finally:
        with suppress(Exception):
            await client.aclose()


def _away(url: str, error: HeadraceError) -> Diagnosis:
    lost = isinstance(error, RedisUnavailableError)
    fix = f"redis-cli -u {redacted(url)} PING; start it, or name another with --redis-url" if lost else ""
    why = "everybody waits for it, and nothing is lost meanwhile" if lost else "nobody can work with it"
    return Diagnosis(SUBJECT, Level.ERROR, str(error), why, fix or "give the right user and password in the URL")


async def _examine_node(node: redis.asyncio.Redis, server: ServerUrl, durability: Durability | None) -> list[Diagnosis]:
    facts = await read_facts(node)
    found = [
        Diagnosis(
            SUBJECT,
            Level.ERROR if finding.fatal else Level.WARN,
            finding.problem,
            _WHY.get(finding.error, _WHY[RedisSetupError]),
            finding.remedy,
        )
        for finding in judge(facts, durability=durability, clustered=server.topology == "cluster")
    ]
    health = await _read_health(node)
    local = all(host in _LOCAL for host, _port in server.hosts)
    found += judge_health(health, secure=server.secure, local=local)
    return [_introduced(facts, health), *found]


def _introduced(facts: ServerFacts, health: ServerHealth) -> Diagnosis:
    mode = {"always": "syncs every write", "everysec": "syncs every second", "none": "keeps nothing for certain"}
    keeps = mode.get(facts.durability or "", "does not tell what it keeps")
    return Diagnosis(SUBJECT, Level.OK, f"{facts.name} {keeps}, and answers in {health.latency_s * 1000:.2f} ms")


async def _read_health(node: redis.asyncio.Redis) -> ServerHealth:
    async with translated("asking Redis how it is"):
        info = await execute(node, "INFO")
        trips = []
        for _ in range(_TRIPS):
            before = time.perf_counter()
            await execute(node, "TIME")  # PING is refused by a server whose disk is full
            trips.append(time.perf_counter() - before)
        before_s = time.time()
        seconds, microseconds = await execute(node, "TIME")
        here_s = (before_s + time.time()) / 2
        return ServerHealth.parse(
            info,
            latency_s=statistics.median(trips),
            skew_s=int(seconds) + int(microseconds) / 1e6 - here_s,
            open_to_all=await _is_open(node),
            denials=await _denials(node),
        )


async def _is_open(node: redis.asyncio.Redis) -> bool | None:
    """Whether the user that nobody has to name may do everything."""
    try:
        reply = await execute(node, "ACL", "GETUSER", "default")
    except (NoPermissionError, ResponseError):
        return None
    fields = dict(zip(reply[::2], reply[1::2], strict=False)) if isinstance(reply, list) else reply
    flags, granted = fields.get(b"flags", ()), fields.get(b"commands", b"")
    return b"on" in flags and b"nopass" in flags and b"+@all" in granted


async def _denials(node: redis.asyncio.Redis) -> int | None:
    try:
        return sum(_count(entry) for entry in await execute(node, "ACL", "LOG"))
    except (NoPermissionError, ResponseError):
        return None


def _count(entry: Any) -> int:
    fields = dict(zip(entry[::2], entry[1::2], strict=False)) if isinstance(entry, list) else entry
    return int(fields.get(b"count", 1))
