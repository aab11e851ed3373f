"""Whether a Redis server fits: new enough, writable, keeping what it was given, as durable as was asked for.

`judge` is pure: facts in, findings out, each with the command or setting that makes it right. What a service
does about a finding is the configuration's to say (`redis.checks`); producers and consumers do not ask.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from headrace.errors import (
    RedisDurabilityError,
    RedisEvictionError,
    RedisRoleError,
    RedisSetupError,
    RedisUnavailableError,
    RedisVersionError,
)
from headrace.server.advisories import advisories_for
from headrace.server.backoff import Backoff
from headrace.server.connection import commands, masters, redacted, translated
from headrace.server.facts import ServerFacts, read_facts
from headrace.server.url import ServerUrl

__all__ = ["Checks", "Durability", "Finding", "ServerReport", "check_server", "judge", "wait_for_server"]

log = logging.getLogger("headrace.server")

Durability = Literal["always", "everysec", "none"]
"""How much of what was acknowledged a server keeps; docs/durability.md says what each mode can lose."""

Checks = Literal["error", "warn", "off"]
"""What becomes of a finding: an error where it is one, a warning at most, or nobody looks."""

_LEAST: Final = {"redis": (7, 0), "valkey": (7, 2)}
_RANK: Final = {"none": 0, "everysec": 1, "always": 2}
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which a server does not fit."""

    error: type[RedisSetupError]
    fatal: bool
    """Whether jobs would be lost, refused or broken; else it is worth a warning."""
    problem: str
    """What is so, to be read behind the server's name."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class ServerReport(NamedTuple):
    """What was found out about a server."""

    facts: ServerFacts
    """Of a cluster, those of one of its masters."""
    findings: tuple[Finding, ...]
    """Of a cluster, those of all its masters, each of them once."""


def judge(facts: ServerFacts, *, durability: Durability | None = None, clustered: bool = False) -> list[Finding]:
    """Everything that speaks against a server, the worst first.

    Args:
        facts: what it says of itself.
        durability: the least that the service was told to insist on; None insists on nothing.
        clustered: whether it is spoken to as a node of a cluster.
    """
    findings = [
        *_role(facts, clustered),
        *_version(facts),
        *_eviction(facts),
        *_durability(facts, durability),
        *_holes(facts),
    ]
    return sorted(findings, key=lambda finding: not finding.fatal)


def _role(facts: ServerFacts, clustered: bool) -> Iterator[Finding]:
    if facts.mode == "sentinel":
        yield Finding(
            RedisRoleError, True, "is a sentinel, not a server", "name it as redis+sentinel://host:port/service"
        )
    elif facts.role != "master":
        yield Finding(
            RedisRoleError,
            True,
            "is a replica and takes no writes",
            "name its master, or the sentinels as redis+sentinel://host:port/service",
        )
    elif facts.mode == "cluster" and not clustered:
        yield Finding(RedisRoleError, True, "is a node of a cluster", "name it as redis+cluster://host:port,host:port")


def _version(facts: ServerFacts) -> Iterator[Finding]:
    least = _LEAST[facts.kind]
    if not any(facts.version):
        yield Finding(RedisVersionError, False, "does not tell its version", f"{facts.kind} {_dotted(least)} is needed")
    elif facts.version[:2] < least:
        yield Finding(
            RedisVersionError, True, f"is {facts.name}", f"headrace needs {facts.kind} {_dotted(least)} or newer"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _eviction(facts: ServerFacts) -> Iterator[Finding]:
    if facts.mode == "sentinel":
        return
    if facts.policy != "noeviction":
        limited = facts.memory_limit_bytes > 0
        when = "when memory is short" if limited else "as soon as maxmemory is set"
        yield Finding(
            RedisEvictionError,
            limited,
            f"evicts keys {when}, and jobs or answers with them ({facts.policy})",
            "run: CONFIG SET maxmemory-policy noeviction, and set it in its configuration file",
        )
    if 0 < facts.memory_limit_bytes <= facts.memory_used_bytes:
        yield Finding(
            RedisSetupError,
            False,
            f"is full: {facts.memory_used_bytes:,} of {facts.memory_limit_bytes:,} bytes are used",
            "raise maxmemory, or wait until answers are consumed",
        )


def _durability(facts: ServerFacts, wanted: Durability | None) -> Iterator[Finding]:
    if facts.mode == "sentinel":
        return
    has = facts.durability
    if has is None:
        yield Finding(
            RedisDurabilityError,
            False,
            "does not tell its appendfsync, since CONFIG GET is not allowed here",
            "look yourself" + (f" that it is {wanted}" if wanted not in (None, "none") else ""),
        )
    elif wanted is not None and _RANK[has] < _RANK[wanted]:
        yield Finding(RedisDurabilityError, True, f"{_keeps(facts)}, and {wanted} is asked for", _remedy(facts, wanted))
    elif wanted is None and has == "none":
        yield Finding(RedisDurabilityError, False, _keeps(facts), _remedy(facts, "everysec"))


def _keeps(facts: ServerFacts) -> str:
    """What a server does with its writes."""
    if not facts.append_only:
        return "keeps no append-only file: a crash loses every job since its last snapshot"
    if facts.fsync == "no":
        return "leaves writing to the operating system: a power failure loses half a minute of jobs"
    return f"has appendfsync {facts.fsync}"


def _remedy(facts: ServerFacts, wanted: str) -> str:
    run = [] if facts.append_only else ["CONFIG SET appendonly yes"]
    if facts.fsync not in (None, wanted):
        run.append(f"CONFIG SET appendfsync {wanted}")
    return f"run: {', '.join(run)}, and set the same in its configuration file"


def _holes(facts: ServerFacts) -> Iterator[Finding]:
    if any(facts.version):
        for advisory in advisories_for(facts.kind, facts.version):
            yield Finding(
                RedisVersionError,
                False,
                f"is {facts.name}, which has {advisory.names}: {advisory.what}",
                "install the newest release of its branch, unless your distribution has fixed it without a new number",
            )


async def check_server(
    url: str, *, checks: Checks = "error", durability: Durability | None = None, timeout_s: float = _TIMEOUT_S
) -> ServerReport:
    """Ask a server what it is, once, and judge it; what is not raised is logged as a warning.

    Raises:
        RedisUnavailableError: it does not answer in time.
        RedisSetupError: it does not fit, of the kind that says how; or it lets nobody in with these credentials.
    """
    facts = await _facts(url, timeout_s)
    clustered = ServerUrl.parse(url).topology == "cluster"
    found = [finding for one in facts for finding in judge(one, durability=durability, clustered=clustered)]
    report = ServerReport(facts[0], () if checks == "off" else tuple(dict.fromkeys(found)))
    shown = redacted(url)
    for finding in report.findings:
        if finding.fatal and checks == "error":
            raise finding.error(f"Redis at {shown} {finding}")
    for finding in report.findings:
        log.warning("Redis at %s %s", shown, finding)
    return report


async def _facts(url: str, timeout_s: float) -> list[ServerFacts]:
    client = commands(url, timeout_s=timeout_s, retries=0)
    try:
        async with translated("asking Redis what it is"):
            servers = await masters(client)
        return [await read_facts(server) for server in servers]
    finally:
        with suppress(Exception):
            await client.aclose()


async def wait_for_server(url: str, *, checks: Checks = "error", durability: Durability | None = None) -> None:
    """As `check_server`, but wait for as long as the server is away: what a router does when it starts.

    Raises:
        RedisSetupError: it does not fit.
    """
    backoff = Backoff()
    while checks != "off":
        try:
            await check_server(url, checks=checks, durability=durability)
        except RedisUnavailableError as error:
            log.warning("waiting for Redis: %s", error)
            await backoff.pause()
        else:
            return
