"""Which routers read a model's lanes, told from Redis alone: consumers of the group, and whose heartbeat stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from headrace.keys import GROUP, keys_of
from headrace.server.connection import execute_together, translated

__all__ = ["RouterSign", "read_routers"]


@dataclass(frozen=True, slots=True)
class RouterSign:
    """A consumer of a model's lanes."""

    name: str
    alive: bool
    """Whether its heartbeat stands. One without is dead, or will be taken over in seconds."""
    delivered: int
    """Jobs that it has taken and that have no answer yet."""


async def read_routers(client: redis.asyncio.Redis, models: Sequence[str]) -> dict[str, list[RouterSign]]:
    """The routers of each model, by name. Two round trips for any number of models.

    Raises:
        RedisError: they cannot be read.
    """
    lanes = [(model, lane) for model in models for lane in keys_of(model).lanes]
    async with translated("reading who reads the lanes"):
        replies = await execute_together(client, [("XPENDING", lane, GROUP) for _model, lane in lanes])
        listed = await execute_together(client, [("XINFO", "CONSUMERS", keys_of(m).lanes[0], GROUP) for m in models])
        delivered = _delivered([model for model, _lane in lanes], replies)
        names = {
            model: sorted({*_names(reply), *delivered.get(model, {})})
            for model, reply in zip(models, listed, strict=True)
        }
        pairs = [(model, name) for model in models for name in names[model]]
        stand = await execute_together(client, [("EXISTS", keys_of(m).heartbeat(name)) for m, name in pairs])
    alive = {pair for pair, stands in zip(pairs, stand, strict=True) if int(stands)}
    return {
        model: [
            RouterSign(name, (model, name) in alive, delivered.get(model, {}).get(name, 0)) for name in names[model]
        ]
        for model in models
    }


def _delivered(models: Sequence[str], replies: Sequence[Any]) -> Mapping[str, dict[str, int]]:
    """How many jobs each consumer has, by model."""
    counts: dict[str, dict[str, int]] = {}
    for model, reply in zip(models, replies, strict=True):
        for name, count in reply[3] or ():
            held = counts.setdefault(model, {})
            held[name.decode()] = held.get(name.decode(), 0) + int(count)
    return counts


def _names(reply: Sequence[Any]) -> list[str]:
    """The consumers' names, whether the client has made dicts of them or not."""
    rows = [row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True)) for row in reply]
    return [_as_text(row.get(b"name", row.get("name", b""))) for row in rows]


def _as_text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
