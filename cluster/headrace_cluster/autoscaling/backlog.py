"""What Redis knows of the work: the backlog of every model, what its jobs are like, and what they cost in each pool.

One round trip for any number of models. What is wrong in Redis is taken for unknown: a pool then has its prior.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace import scripts
from headrace.keys import keys_of
from headrace.server.connection import execute_together, translated
from headrace_cluster.autoscaling.arrivals import ArrivalRate
from headrace_cluster.autoscaling.observation import MEAN_TOKENS, ModelLoad
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["BacklogReader"]

_COSTS_EVERY: Final = 4
"""Looks; what a batch costs changes slowly."""


@dataclass(slots=True)
class _Jobs:
    """What a model's jobs have been like."""

    mean_tokens: float = MEAN_TOKENS
    slack_s: float | None = None


@dataclass(slots=True)
class _Memory:
    """What was read of one model."""

    rate: ArrivalRate = field(default_factory=ArrivalRate)
    jobs: _Jobs = field(default_factory=_Jobs)
    raw: dict[bytes, bytes] = field(default_factory=dict)
    """The hash that the others were read from; most of the time it is the same the next time."""


class BacklogReader:
    """Reads all models of a plan, again and again.

    Args:
        plan: which models and pools.
        client: the Redis server.
    """

    def __init__(self, plan: ScalingPlan, client: redis.asyncio.Redis) -> None:
        self._plan = plan
        self._client = client
        self._pools = {pool.name: pool for pool in plan.pools}
        self._memories = {model.name: _Memory() for model in plan.models}
        self._names = [name for model in plan.models for name in model.names]
        self._looks = 0
        self.costs: Mapping[str, Mapping[str, CostModel]] = {pool.name: {} for pool in plan.pools}
        """For each pool, by model, what a batch takes."""

    async def look(self, now_s: float) -> dict[str, ModelLoad]:
        """The load of each model.

        Raises:
            RedisError: it cannot be read.
        """
        with_costs = self._looks % _COSTS_EVERY == 0
        async with translated("reading the backlog"):
            try:
                replies = await self._ask(with_costs=with_costs)
            except NoScriptError:
                await self._client.script_load(scripts.BACKLOG.text)
                replies = await self._ask(with_costs=with_costs)
        self._looks += 1
        backlogs = dict(zip(self._names, replies, strict=False))
        if with_costs:
            self._learn(dict(zip(self._names, replies[len(self._names) :], strict=True)))
        return {model.name: self._load(model, now_s, backlogs) for model in self._plan.models}

    async def _ask(self, *, with_costs: bool) -> list[Any]:
        requests: list[tuple[str | int, ...]] = [
            ("EVALSHA", scripts.BACKLOG.sha, 1, keys_of(name).prefix) for name in self._names
        ]
        if with_costs:
            requests += [("HGETALL", keys_of(name).pools) for name in self._names]
        return await execute_together(self._client, requests)

    def _load(self, model: ModelPlan, now_s: float, backlogs: Mapping[str, Sequence[int]]) -> ModelLoad:
        """The shards of a model as one."""
        memory = self._memories[model.name]
        shards = [backlogs[name] for name in model.names]
        submitted, waiting, delivered = (sum(int(shard[place]) for shard in shards) for place in range(3))
        return ModelLoad(
            waiting,
            delivered,
            memory.rate.note(now_s, submitted),
            memory.jobs.mean_tokens,
            memory.jobs.slack_s,
            max(int(shard[3]) for shard in shards) / 1000,
            submitted,
        )

    def _learn(self, hashes: Mapping[str, Any]) -> None:
        """Take in costs and sizes, where they are new; of several shards, those of the one that knows most."""
        costs = {pool: dict(models) for pool, models in self.costs.items()}
        for model in self._plan.models:
            memory = self._memories[model.name]
            raw = max((_pairs(hashes[name]) for name in model.names), key=len)
            if raw == memory.raw:
                continue
            memory.raw, memory.jobs = raw, _jobs_of(raw.get(b"jobs"))
            for pool in model.pools:
                if (cost := _cost_of(raw.get(_cost_field(pool)), self._pools[pool])) is not None:
                    costs[pool][model.name] = cost
        self.costs = costs


def _cost_field(pool: str) -> bytes:
    """The field of a deployment: `cost@cpu` of `minilm@cpu`."""
    return f"cost@{pool.partition('@')[2]}".encode()


def _pairs(reply: Any) -> dict[bytes, bytes]:
    """HGETALL's reply, which redis-py gives as a map, and within a pipeline on a cluster as a list."""
    if isinstance(reply, Mapping):
        return dict(reply)
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _cost_of(raw: bytes | None, pool: PoolPlan) -> CostModel | None:
    if raw is None:
        return None
    try:
        return CostModel.from_state(json.loads(raw), pool.prior)
    except ValueError:
        return None


def _jobs_of(raw: bytes | None) -> _Jobs:
    try:
        told = json.loads(raw or b"{}")
        tokens, slack_s = float(told.get("mean_tokens") or 0), told.get("slack_s")
        slack_s = None if slack_s is None else float(slack_s)
    except (ValueError, TypeError, AttributeError):
        return _Jobs()
    if not 0 < tokens < math.inf:
        tokens = MEAN_TOKENS
    return _Jobs(tokens, slack_s if slack_s is not None and math.isfinite(slack_s) else None)
