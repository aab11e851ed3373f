"""What routers have learned of a model's pools, kept in Redis: the hash `hr:{m}:pools`.

Each router writes what it has measured itself, every few seconds and when it ends; the last writer wins, since all of
them measure the same replicas. A router that starts begins with what the last one knew, and the autoscaler reads
along. Nothing waits for it: while Redis is away nothing is written, and what cannot be read is learned anew.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio

from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.server.connection import execute, translated
from headrace_cluster.scheduling.cost_model import CostModel
from headrace_cluster.scheduling.pool_costs import PoolCosts

__all__ = ["JOBS", "PoolMemory", "Remembered", "cost_field"]

log = logging.getLogger("headrace.cost")

JOBS: Final = "jobs"
"""The field that says what jobs of the model have been like."""
_COST: Final = "cost@"
_MOST_POOLS: Final = 64


def cost_field(pool: str) -> str:
    """The field that holds the state of a pool's cost model."""
    return _COST + pool


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the hash holds, as far as it makes sense."""

    costs: Mapping[str, CostModel] = field(default_factory=dict)
    """By pool; "" where there is only one, without a name."""
    mean_tokens: float | None = None
    slack_s: float | None = None

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> Remembered:
        """Read the fields of the hash. What is no such thing is warned of and left out."""
        read = {name.decode(errors="replace"): _json(name, value) for name, value in fields.items() if _ours(name)}
        costs = {name.removeprefix(_COST): CostModel.from_state(state) for name, state in read.items() if name != JOBS}
        jobs = read.get(JOBS)
        known = jobs if isinstance(jobs, dict) else {}
        return cls(
            {pool: cost for pool, cost in costs.items() if cost.measured},
            _number(known.get("mean_tokens")),
            _number(known.get("slack_s")),
        )


def _ours(name: bytes) -> bool:
    return name == JOBS.encode() or name.startswith(_COST.encode())


def _json(name: bytes, value: bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        log.warning("the field %r of what is known of pools is no JSON; it is left out", name)
        return None


def _number(value: Any) -> float | None:
    """A number that can be a mean or a duration; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < math.inf else None


class PoolMemory:
    """Keeps the costs of one model's pools in Redis.

    Args:
        model: its name.
        client: for commands.
        costs: what is kept, and into which what was kept is read.
    """

    def __init__(self, model: str, client: redis.asyncio.Redis, costs: PoolCosts) -> None:
        self._key = keys_of(model).pools
        self._client = client
        self._costs = costs
        self._written: dict[str, int] = {}
        self._loaded = False
        self._keeping = False

    async def load(self) -> None:
        """Read what was known before. If that cannot be, it is tried again later."""
        try:
            async with translated("reading what is known of pools"):
                fields = _pairs(await execute(self._client, "HGETALL", self._key))
        except RedisError as error:
            log.warning("what is known of pools is not read: %s", error)
            return
        self._loaded = True
        await self._forget(name for name in fields if name.startswith(_COST.encode()))
        known = Remembered.of(fields)
        self._costs.restore(known.costs, known.mean_tokens, known.slack_s)
        self._written = {pool: cost.measured for pool, cost in known.costs.items()}

    async def _forget(self, names: Iterable[bytes]) -> None:
        """Once there are too many, drop the costs of pools that this router does not know."""
        names = list(names)
        if len(names) > _MOST_POOLS:
            ours = {cost_field(pool).encode() for pool in self._costs.known}
            with suppress(RedisError):
                async with translated("forgetting pools"):
                    await execute(self._client, "HDEL", self._key, *(name for name in names if name not in ours))

    async def keep(self) -> None:
        """Write what has changed since the last time, after reading what there was, if that could not be read yet.

        Nothing happens while an earlier call still waits for Redis.
        """
        if self._keeping:
            return
        self._keeping = True
        try:
            if not self._loaded:
                await self.load()
            await self.save()
        finally:
            self._keeping = False

    async def save(self) -> None:
        """Write what has changed since the last time. If that cannot be, it is tried the next time."""
        changed = {
            pool: cost for pool, cost in self._costs.models.items() if cost.measured > self._written.get(pool, 0)
        }
        if not changed:
            return
        said = [part for pool, cost in changed.items() for part in (cost_field(pool), json.dumps(cost.to_state()))]
        jobs = {"mean_tokens": self._costs.mean_tokens, "slack_s": self._costs.slack_s}
        try:
            async with translated("writing what is known of pools"):
                await execute(self._client, "HSET", self._key, *said[: 2 * _MOST_POOLS], JOBS, json.dumps(jobs))
        except RedisError as error:
            log.warning("what is known of pools is not written: %s", error)
        else:
            self._written.update((pool, cost.measured) for pool, cost in changed.items())


def _pairs(reply: Any) -> dict[bytes, bytes]:
    """A hash as servers of either protocol give it."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))
