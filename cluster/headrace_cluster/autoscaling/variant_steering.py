"""Tells the pools of adaptive models which variant to run: the ladders, fed with what the autoscaler sees.

It runs beside the autoscaler, in the same thread and from the same observation, since it is asked only where more
replicas are no answer. What was decided stands in Redis and nowhere else; so a controller that is restarted, or a newer
generation of the application, goes on where the last one was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio

from headrace.errors import DecodeError
from headrace.keys import keys_of
from headrace.messages.rungs import Rung, rungs_field, unpack_rungs, variant_field
from headrace.server.connection import execute, translated
from headrace_cluster.autoscaling.aim import job_s
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.variant_ladder import PoolLoad, VariantChoice, VariantLadder

__all__ = ["VariantSteering", "load_of"]

log = logging.getLogger("headrace.autoscaling")

_LEAST_SPARE: Final = 0.1
"""Of what the pools can do, what is taken to be left for the backlog at least: neither rate is known to a tenth."""


def load_of(model: ModelPlan, pools: Mapping[str, PoolPlan], seen: Observation) -> PoolLoad | None:
    """What all pools of a model have to do together, at their most; None where that is not known yet."""
    load, states = seen.models.get(model.name), [seen.pools.get(name) for name in model.pools]
    known = [(pools[name], state) for name, state in zip(model.pools, states, strict=True) if state is not None]
    if load is None or len(known) < len(model.pools):
        return None
    rates = [_jobs_per_s(model, load, pool, state) for pool, state in known]
    if any(rate is None for rate in rates):
        return None
    most = sum(rate or 0.0 for rate in rates)
    if not most:
        return None  # nothing runs, and nothing can: no variant would change that
    spare = max(most - load.arrivals_per_s, _LEAST_SPARE * most)
    at_most = all(state.target >= pool.max_replicas or bool(state.unplaceable) for pool, state in known)
    return PoolLoad(drain_s=load.live / spare, busy=load.arrivals_per_s / most, at_most=at_most)


def _jobs_per_s(model: ModelPlan, load: ModelLoad, pool: PoolPlan, state: PoolState) -> float | None:
    """What a pool does with all replicas that it may have; None if nothing was measured."""
    cost = state.costs.get(model.name)
    if cost is None or not cost.measured:
        return None
    return (state.replicas if state.unplaceable else pool.max_replicas) / job_s(model, load, cost)


@dataclass(frozen=True, slots=True)
class _Told:
    """What stands in Redis of one pool."""

    rungs: tuple[Rung, ...]
    variant: str | None


class VariantSteering:
    """Steers the adaptive models of a plan.

    Args:
        plan: which models and pools.
    """

    def __init__(self, plan: ScalingPlan) -> None:
        self._models = [model for model in plan.models if model.ladder is not None]
        self._pools = {pool.name: pool for pool in plan.pools}
        self._ladders = {
            (model.name, pool): VariantLadder(model.ladder)
            for model in self._models
            for pool in model.pools
            if model.ladder is not None
        }

    async def steer(self, client: redis.asyncio.Redis, now_s: float, seen: Observation) -> None:
        """Decide for every pool of every adaptive model, and write down what changed.

        Raises:
            RedisError: it cannot be read or written; nothing is lost by that.
        """
        for model in self._models:
            load = load_of(model, self._pools, seen)
            async with translated(f"steering the variants of {model.name}"):
                reply: Any = await execute(client, "HGETALL", keys_of(model.name).pools)
                fields = dict(reply) if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))
                for pool in model.pools:
                    told = _told(fields, pool.partition("@")[2])
                    if told.rungs:  # else none of its replicas has started yet
                        await self._decide(client, now_s, model, pool, load, told)

    async def _decide(
        self,
        client: redis.asyncio.Redis,
        now_s: float,
        model: ModelPlan,
        pool: str,
        load: PoolLoad | None,
        told: _Told,
    ) -> None:
        choice = self._ladders[model.name, pool].decide(now_s, load, rungs=told.rungs, current=told.variant)
        if choice.changed:
            field = variant_field(pool.partition("@")[2])
            await execute(client, "HSET", keys_of(model.name).pools, field, choice.variant)
            log.info("%s", _line(pool, told.variant, choice))


def _told(fields: Mapping[bytes, bytes], pool: str) -> _Told:
    raw, variant = fields.get(rungs_field(pool).encode()), fields.get(variant_field(pool).encode())
    try:
        rungs = () if raw is None else unpack_rungs(raw)
    except DecodeError as error:
        log.warning("%s of pool %s %s", rungs_field(pool), pool, error.reason)
        rungs = ()
    return _Told(rungs, None if variant is None else variant.decode("utf-8", "replace"))


def _line(pool: str, before: str | None, choice: VariantChoice) -> str:
    return json.dumps(
        {
            "event": "variant",
            "pool": pool,
            "from": before,
            "to": choice.variant,
            "reasons": list(choice.reasons),
        }
    )
