"""What stands in Redis: read while a run lasts, and when it is over."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.cluster import Cluster
from chaos.orders import MODEL
from chaos.record import FinalState, Terminal
from headrace import scripts
from headrace.errors import HeadraceError
from headrace.keys import GROUP, LANES, MODELS, keys_of, priority_of
from headrace.messages.envelope import Envelope
from headrace.messages.inbox import InboxEntry
from headrace.messages.result import Result
from headrace.server.connection import execute, execute_together

__all__ = ["final_state", "sample_audit", "sample_memory"]

_KEYS = keys_of(MODEL)
_PAGE = 1000


async def sample_audit(cluster: Cluster) -> dict[str, int]:
    """Write down what AUDIT says, and how many jobs the fullest priority holds; nothing if the server is away."""
    with suppress(HeadraceError, RedisError, OSError):
        numbers = await _audit(cluster.redis)
        lengths = await execute_together(cluster.redis, [("XLEN", lane) for lane in _KEYS.lanes])
        held = [sum(lengths[lane] for lane in range(LANES) if priority_of(lane) == wanted) for wanted in range(3)]
        cluster.history.note("audit", **numbers, fullest=max(held))
        return {"submitted": 0} | numbers
    return {}


async def _audit(redis: Redis) -> dict[str, int]:
    flat = await scripts.AUDIT(redis, _KEYS.prefix, [])
    return {name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}


async def sample_memory(cluster: Cluster) -> None:
    """Write down how much memory the server and the largest router use."""
    with suppress(RedisError, OSError):
        used = int((await cluster.redis.info("memory"))["used_memory"])
        routers = max((_resident_bytes(pid) for pid in cluster.pids("router")), default=0)
        cluster.history.note("memory", redis_bytes=used, router_bytes=routers)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def final_state(redis: Redis) -> FinalState:
    """All that is left when nobody does anything any more."""
    tenants = _pairs(await execute(redis, "HGETALL", _KEYS.tenants))
    return FinalState(
        terminals=await _terminals(redis),
        audit=await _audit(redis),
        tenants={name: int(live) for name, live in tenants.items()},
        pending=await _pending(redis),
        dead_letters=await _dead_letters(redis),
        keys_without_ttl=await _keys_without_ttl(redis),
    )


def _pairs(flat: Any) -> dict[str, str]:
    words = [word.decode() for pair in (flat.items() if isinstance(flat, dict) else [flat]) for word in pair]
    return dict(zip(words[::2], words[1::2], strict=True))


async def _terminals(redis: Redis) -> list[tuple[str, Terminal]]:
    found = []
    async for key in redis.scan_iter(match=_KEYS.inbox("*"), count=1000):
        inbox = key.decode().removeprefix(_KEYS.inbox(""))
        async for entry_id, fields in _entries(redis, key):
            entry = InboxEntry.parse(inbox, entry_id, fields)
            if entry.status != "chunk":
                found.append((entry.job_id, _terminal(entry)))
    return found


def _terminal(entry: InboxEntry) -> Terminal:
    result = entry.to_result(MODEL)
    code = str(result.failure.code) if result.failure else ""
    return Terminal(entry.inbox, entry.entry_id, entry.status, entry.attempt, _said(result), code)


def _said(result: Result) -> Any:
    return result.output if result.text is None else result.text


async def _pending(redis: Redis) -> dict[str, int]:
    replies = await execute_together(redis, [("XPENDING", lane, GROUP) for lane in _KEYS.lanes])
    counts = {lane: int(reply[0]) for lane, reply in zip(_KEYS.lanes, replies, strict=True)}
    return {lane: count for lane, count in counts.items() if count}


async def _dead_letters(redis: Redis) -> list[str]:
    return [
        Envelope.parse(fields[fields.index(b"e") + 1]).job_id async for _, fields in _entries(redis, _KEYS.dead_letters)
    ]


async def _entries(redis: Redis, stream: str | bytes) -> AsyncIterator[tuple[bytes, list[bytes]]]:
    """All entries of a stream, a page at a time: in one reply they would be too many for a busy machine's time-out."""
    start = b"-"
    while page := await execute(redis, "XRANGE", stream, start, "+", "COUNT", _PAGE):
        for entry_id, fields in page:
            yield entry_id, fields
        start = b"(" + page[-1][0]


async def _keys_without_ttl(redis: Redis) -> list[str]:
    keys = [key.decode() async for key in redis.scan_iter(count=1000)]
    kept = [key for key in keys if key not in _KEYS.permanent | {MODELS}]
    lifetimes = await execute_together(redis, [("TTL", key) for key in kept]) if kept else []
    return [key for key, seconds in zip(kept, lifetimes, strict=True) if seconds == -1]
