"""What a service says of a model in Redis: that it exists, and within which limits it takes jobs.

The limits lie beside the lanes rather than with the producers, so that whoever runs the service sets them
and the SUBMIT script holds every producer to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import redis.asyncio
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import ResponseError

from headrace import scripts
from headrace.keys import GROUP, MODELS, keys_of
from headrace.messages.envelope import WIRE_VERSION
from headrace.models.shards import model_of
from headrace.server.connection import execute, translated

__all__ = ["Limits", "close_model", "forget_model", "open_model", "register", "registered_models"]


class Limits(BaseModel):
    """How much of a model's work Redis may hold, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lane_capacity: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    """Jobs of each priority, waiting or delivered."""
    tenant_capacity: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    """Live jobs of one tenant."""
    retention_s: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600.0
    """How long answers and records of ended jobs are kept."""
    dead_letter_capacity: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Dead letters that are kept; beyond it the oldest go."""


async def register(
    client: redis.asyncio.Redis, model: str, limits: Limits, *, shards: int = 1, generation: int | None = None
) -> None:
    """Make a model known to producers, or change its limits. Safe to repeat.

    Args:
        client: of the server.
        model: its name, or that of one of its shards.
        limits: of this name.
        shards: how many shards the model has.
        generation: of the application that serves it; a model that was closed is opened by a newer one only.
    """
    keys = keys_of(model)
    async with translated(f"registering model {model}"):
        for lane in keys.lanes:
            try:
                await client.xgroup_create(lane, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
        closed = await client.hget(keys.meta, "closed")
        stays_closed = closed is not None and generation is not None and generation <= int(closed)
        if closed is not None and not stays_closed:
            await client.hdel(keys.meta, "closed")
        opened: dict[Any, Any] = {} if stays_closed else {"lane_capacity": limits.lane_capacity}
        await client.hset(
            keys.meta,
            mapping={
                **opened,
                "tenant_capacity": limits.tenant_capacity,
                "retention_ms": int(limits.retention_s * 1000),
                "dead_letter_capacity": limits.dead_letter_capacity,
                "wire_version": WIRE_VERSION,
            },
        )
        base = model_of(model)
        if shards > 1 or base == model:  # a shard that is hosted by itself knows nothing of the others
            await client.hset(keys_of(base).meta, "shards", str(shards))
        await client.sadd(MODELS, model)


async def close_model(client: redis.asyncio.Redis, model: str, *, generation: int) -> None:
    """Have a model take no more jobs: SUBMIT does not know it any more. Those that it has go on. Safe to repeat.

    Args:
        client: of the server.
        model: its name, or that of one of its shards.
        generation: the newest that serves it; routers up to this one leave it closed.
    """
    async with translated(f"closing {model}"):
        await execute(client, "HSET", keys_of(model).meta, "closed", generation)
        await execute(client, "HDEL", keys_of(model).meta, "lane_capacity")


async def open_model(client: redis.asyncio.Redis, model: str, limits: Limits) -> None:
    """Have a model take jobs again if it was closed."""
    async with translated(f"opening {model}"):
        if await execute(client, "HDEL", keys_of(model).meta, "closed"):
            await execute(client, "HSET", keys_of(model).meta, "lane_capacity", limits.lane_capacity)


async def forget_model(client: redis.asyncio.Redis, model: str, *, last_shard: bool = True) -> scripts.ForgetOutcome:
    """Delete what is kept of a model that is empty and that nobody serves any more.

    Args:
        client: of the server.
        model: its name, or that of one of its shards.
        last_shard: whether no other shard of it is served.
    """
    outcome = await scripts.forget(client, model)
    if outcome is scripts.ForgetOutcome.FORGOTTEN:
        async with translated(f"forgetting {model}"):
            if last_shard and model_of(model) != model:
                await execute(client, "HDEL", keys_of(model_of(model)).meta, "shards")
            await execute(client, "SREM", MODELS, model)
    return outcome


async def registered_models(client: redis.asyncio.Redis) -> Sequence[str]:
    """The names of all registered models, sorted."""
    async with translated("reading the registered models"):
        members = await client.smembers(MODELS)
    return sorted(str(member, "utf-8") if isinstance(member, bytes) else member for member in members)
