"""What becomes of a model's jobs when the model is removed: they hold it up, run first, or are set aside.

The order is always the same: the model is closed, so that no job comes; its jobs are seen to; the application without
it is deployed; what Redis keeps of it is deleted. Whatever interrupts that leaves the model closed or open, with all
its jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

import redis.asyncio

from headrace import scripts
from headrace.errors import DecodeError, FailureCode
from headrace.ids import new_token
from headrace.keys import GROUP, LANES, keys_of
from headrace.messages import LaneEntry, Status, pack_failure
from headrace.models.registry import forget_model, registered_models
from headrace.models.shards import model_of
from headrace.scripts import Answer, ForgetOutcome
from headrace.server.connection import execute, translated
from headrace_cluster.router.lease import Lease

__all__ = ["Removed", "bury_jobs", "closed_models", "forget_models", "live_jobs", "wait_until_empty"]

_LOOK_EVERY_S: Final = 0.2
_AT_ONCE: Final = 64


class Removed(StrEnum):
    """What becomes of the jobs of a model that is removed."""

    REFUSE = "refuse"
    """It is not removed while it has jobs."""
    DRAIN = "drain"
    """They run first."""
    DEAD_LETTER = "dead-letter"
    """They end as `dead`, and are kept to be replayed."""


async def live_jobs(client: redis.asyncio.Redis, models: Sequence[str]) -> dict[str, int]:
    """How many jobs each model has that have not ended; those without are left out."""
    live = {model: (await scripts.audit(client, model)).live for model in models}
    return {model: jobs for model, jobs in live.items() if jobs}


async def closed_models(client: redis.asyncio.Redis) -> set[str]:
    """Models that take no jobs since somebody began to remove them."""
    models = await registered_models(client)
    async with translated("reading which models are closed"):
        return {model for model in models if await execute(client, "HGET", keys_of(model).meta, "closed") is not None}


async def wait_until_empty(
    client: redis.asyncio.Redis, models: Sequence[str], *, timeout_s: float, say: Callable[[str], None]
) -> dict[str, int]:
    """Wait until no job of the models is live; returns those that still have some when the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while live := await live_jobs(client, models):
        if time.monotonic() >= deadline_s:
            break
        say("draining: " + ", ".join(f"{jobs:,} jobs of {model}" for model, jobs in live.items()))
        await asyncio.sleep(_LOOK_EVERY_S)
    return live


async def bury_jobs(client: redis.asyncio.Redis, url: str, model: str, *, timeout_s: float) -> int:
    """End every job of a model that no router reads any more as `dead`; returns how many, when none is live.

    Those that a replica still runs may end by themselves meanwhile.

    Raises:
        RedisError: Redis cannot be asked. What was ended is ended.
        TimeoutError: some jobs cannot be had; their routers live still.
    """
    lease = Lease(url, [model], consumer=f"bury-{new_token()}")
    lease.start()
    buried = 0
    try:
        async with asyncio.timeout(timeout_s):
            await lease.wait_held()
            while await live_jobs(client, [model]):
                entries = await _taken(client, model, lease)
                buried += await _end(client, model, entries)
                if not entries:
                    await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        await lease.stop()
        await scripts.release(client, model, lease.consumer)
    return buried


async def _taken(client: redis.asyncio.Redis, model: str, lease: Lease) -> list[LaneEntry]:
    """Jobs that wait, whether in a lane, for their next attempt, or with a router that ended."""
    async with translated(f"reading lanes of {model}"):
        for job_id in await execute(client, "ZRANGE", keys_of(model).delayed, 0, _AT_ONCE):
            await execute(client, "ZADD", keys_of(model).delayed, "XX", 0, job_id)  # due now
        await scripts.sweep(client, model)
        lanes = keys_of(model).lanes
        new = (*lanes, *([">"] * LANES))
        found: Any = await execute(
            client, "XREADGROUP", "GROUP", GROUP, lease.consumer, "COUNT", _AT_ONCE, "STREAMS", *new
        )
    lane_of = {key.encode(): lane for lane, key in enumerate(lanes)}
    rows = [(lane_of[key], entry_id, fields) for key, items in found or () for entry_id, fields in items]
    if lease.may_reap:
        reaped = await scripts.reap(client, model, lease.consumer, _AT_ONCE)
        rows += [(row.lane, row.entry_id, row.fields) for row in reaped]
    return [entry for row in rows if (entry := _read(*row)) is not None]


def _read(lane: int, entry_id: bytes, fields: Sequence[bytes]) -> LaneEntry | None:
    try:
        return LaneEntry.read(lane, entry_id, fields)
    except DecodeError:
        return None


async def _end(client: redis.asyncio.Redis, model: str, entries: Sequence[LaneEntry]) -> int:
    hint = f"`headrace dlq replay {model}` submits it again where the model is served"
    body = pack_failure(FailureCode.MODEL_REMOVED, f"{model} was removed from the service", hint=hint)
    answers = [Answer(entry.lane, entry.entry_id, entry.text, Status.DEAD, body) for entry in entries]
    ended = 0
    for start in range(0, len(answers), scripts.MAX_JOBS):
        ended += sum(await scripts.complete(client, model, answers[start : start + scripts.MAX_JOBS]))
    return ended


async def forget_models(
    client: redis.asyncio.Redis, models: Sequence[str], *, served: Sequence[str], timeout_s: float
) -> dict[str, ForgetOutcome]:
    """Delete what Redis keeps of removed models, as soon as their last router is gone; what became of each.

    Args:
        client: of the server.
        models: their names, or those of shards.
        served: names of the models and shards that are served still.
        timeout_s: how long to wait for routers.
    """
    deadline_s = time.monotonic() + timeout_s
    outcomes: dict[str, ForgetOutcome] = {}
    for model in models:
        last = model_of(model) not in {model_of(name) for name in served}
        while True:
            outcomes[model] = await forget_model(client, model, last_shard=last)
            if outcomes[model] is not ForgetOutcome.READ or time.monotonic() >= deadline_s:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
    return outcomes
