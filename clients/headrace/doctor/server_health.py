"""How a Redis server is doing at present, and what of that is wrong. Pure: it is given what was read and measured.

What a server keeps through a crash, and which versions have holes, is judged by `server_check.judge` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.doctor.diagnosis import Diagnosis, Level

__all__ = ["SUBJECT", "WHY_EVICTION_MATTERS", "ServerHealth", "judge_health"]

SUBJECT: Final = "redis"
"""Of diagnoses of a server."""
WHY_EVICTION_MATTERS: Final = "evicted keys are lost jobs and lost answers, and nobody is told"

_FULL: Final = 0.8
_SLOW_S: Final = 0.01
_VERY_SLOW_S: Final = 0.1
_SKEW_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """How one server is doing."""

    latency_s: float = 0.0
    """A round trip, the median of some."""
    skew_s: float = 0.0
    """How far its clock is ahead of this machine's."""
    failed_writes: tuple[str, ...] = ()
    """What it last failed to write: `append-only file`, `rewrite of the append-only file`, `snapshot`."""
    delayed_fsyncs_per_min: float = 0.0
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    """0 is none."""
    machine_bytes: int = 0
    """Memory of the machine it runs on, or 0."""
    clients: int = 0
    max_clients: int = 0
    """0 is unknown."""
    evicted_keys: int = 0
    open_to_all: bool | None = None
    """Whether anybody may do anything without a password; None if ACL may not be read."""
    denials: int | None = None
    """Entries in the ACL log; None if it may not be read."""

    @classmethod
    def parse(cls, info: Mapping[str, Any], **measured: Any) -> ServerHealth:
        """Read the reply to INFO."""
        uptime_min = max(int(info.get("uptime_in_seconds", 0)) / 60, 1.0)
        written = {
            "append-only file": info.get("aof_last_write_status", "ok"),
            "rewrite of the append-only file": info.get("aof_last_bgrewrite_status", "ok"),
            "snapshot": info.get("rdb_last_bgsave_status", "ok"),
        }
        return cls(
            failed_writes=tuple(name for name, status in written.items() if status != "ok"),
            delayed_fsyncs_per_min=int(info.get("aof_delayed_fsync", 0)) / uptime_min,
            memory_used_bytes=int(info.get("used_memory", 0)),
            memory_limit_bytes=int(info.get("maxmemory", 0)),
            machine_bytes=int(info.get("total_system_memory", 0)),
            clients=int(info.get("connected_clients", 0)),
            max_clients=int(info.get("maxclients", 0)),
            evicted_keys=int(info.get("evicted_keys", 0)),
            **measured,
        )


def judge_health(health: ServerHealth, *, secure: bool, local: bool) -> Iterator[Diagnosis]:
    """Everything that is wrong with it at present.

    Args:
        health: of one server.
        secure: whether it is reached with TLS.
        local: whether it is on this machine.
    """
    yield from _disk(health)
    yield from _memory(health)
    yield from _traffic(health)
    yield from _access(health, secure=secure, local=local)


def _disk(health: ServerHealth) -> Iterator[Diagnosis]:
    for name in health.failed_writes:
        yield Diagnosis(
            SUBJECT,
            Level.ERROR,
            f"could not write its {name} the last time it tried",
            "while that lasts it may refuse writes (MISCONF), and what it holds is only in memory",
            "make room on its disk (df -h), then: redis-cli BGREWRITEAOF; its log says what failed",
        )
    if health.delayed_fsyncs_per_min > 1:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"waited for its disk {health.delayed_fsyncs_per_min:.1f} times a minute",
            "every job's acknowledgement waits with it",
            "give it a faster disk, or one of its own; redis-cli LATENCY LATEST shows the longest waits",
        )


def _memory(health: ServerHealth) -> Iterator[Diagnosis]:
    limit, used = health.memory_limit_bytes, health.memory_used_bytes
    if _FULL * limit <= used < limit:  # a server that is full is told of by `server_check`
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"uses {used / limit:.0%} of maxmemory ({used:,} of {limit:,} bytes)",
            "at the limit new jobs are refused; those that are there are finished",
            "redis-cli CONFIG SET maxmemory <more>; or let consumers read what lies in inboxes, or shorten retention_s",
        )
    if not limit and health.machine_bytes and used >= _FULL / 2 * health.machine_bytes:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"has no maxmemory and uses {used / health.machine_bytes:.0%} of its machine's memory",
            "a rewrite of the append-only file forks; if memory runs out, the kernel kills the server",
            f"redis-cli CONFIG SET maxmemory {health.machine_bytes // 2}",
        )
    if health.evicted_keys:
        yield Diagnosis(
            SUBJECT,
            Level.ERROR,
            f"has evicted {health.evicted_keys:,} keys since it was started",
            WHY_EVICTION_MATTERS,
            "redis-cli CONFIG SET maxmemory-policy noeviction; then `headrace status` shows what is lost",
        )


def _traffic(health: ServerHealth) -> Iterator[Diagnosis]:
    if health.latency_s > _SLOW_S:
        yield Diagnosis(
            SUBJECT,
            Level.ERROR if health.latency_s > _VERY_SLOW_S else Level.WARN,
            f"takes {health.latency_s * 1000:.1f} ms to answer from here",
            "every batch costs a few round trips, and a heartbeat that comes late costs a router its lease",
            "redis-cli SLOWLOG GET 10; redis-cli --latency; run routers and Redis in one zone",
        )
    if abs(health.skew_s) > _SKEW_S:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"has a clock {abs(health.skew_s):.1f} s {'ahead of' if health.skew_s > 0 else 'behind'} this machine's",
            "deadlines go by the server's clock and are right, but logs and traces will not fit together",
            "synchronize the clocks: timedatectl set-ntp true",
        )
    if health.max_clients and health.clients >= _FULL * health.max_clients:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"has {health.clients:,} of at most {health.max_clients:,} connections",
            "beyond that nobody gets in, routers included",
            "redis-cli CLIENT LIST; redis-cli CONFIG SET maxclients <more>",
        )


def _access(health: ServerHealth, *, secure: bool, local: bool) -> Iterator[Diagnosis]:
    if health.open_to_all and not local:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            "lets anybody in without a password, with every right",
            "who reaches it reads every job, writes answers, and deletes what he likes",
            "headrace acl prints users for producers, consumers, workers, monitors and admins (docs/security.md)",
        )
    if not secure and not local:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            "is reached over the network without TLS",
            "passwords and jobs can be read on the way",
            "name it as rediss://… with redis.ca_file (docs/security.md); fine behind a mesh or an encrypted network",
        )
    if health.denials:
        yield Diagnosis(
            SUBJECT,
            Level.WARN,
            f"has refused something to a user {health.denials} times",
            "a user whose profile is of another version can do a part of its work only",
            "redis-cli ACL LOG; headrace acl prints the users of this version; then redis-cli ACL LOG RESET",
        )
