"""Why a pool gets so many replicas, in words for whoever reads the log."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal

from headrace_cluster.autoscaling.aim import horizon_s
from headrace_cluster.autoscaling.demand import Demand
from headrace_cluster.autoscaling.observation import Observation
from headrace_cluster.autoscaling.plan import PoolPlan, ScalingPlan

__all__ = ["Told", "how_many"]

_TOLD_MODELS = 3
"""Of a pool that many models share, only those that need the most are named."""


def how_many(replicas: int) -> str:
    """`1 replica was`, `3 replicas were`."""
    return f"{replicas} replica was" if replicas == 1 else f"{replicas} replicas were"


class Told:
    """Finds words for what was decided of each pool.

    Args:
        plan: the models and pools.
        seen: how they are.
        demand: what they need.
        stuck: pools that were refused replicas they asked for.
    """

    def __init__(self, plan: ScalingPlan, seen: Observation, demand: Demand, stuck: Container[str]) -> None:
        self._models = {model.name: model for model in plan.models}
        self._seen, self._demand, self._stuck = seen, demand, stuck

    def cause(self, pool: PoolPlan) -> Literal["backlog", "arrivals", "minimum", "no_node"]:
        """The weightiest of them in a word."""
        if pool.name in self._stuck:
            return "no_node"
        needs = self._demand.work.get(pool.name)
        if not needs:
            return "minimum"
        return "backlog" if any(self._seen.models[model].live for model in needs) else "arrivals"

    def of(self, pool: PoolPlan) -> tuple[str, ...]:
        """The reasons for what a pool needs, the weightiest first."""
        return (*self._trouble(pool), *self._work(pool))

    def _trouble(self, pool: PoolPlan) -> list[str]:
        if pool.name not in self._stuck:
            return []
        why = self._seen.pools[pool.name].unplaceable
        found = f"no node can hold a replica: {why}" if why else "its replicas do not become ready"
        return [f"{found}; other pools take its work, where there are any"]

    def _work(self, pool: PoolPlan) -> list[str]:
        needs = self._demand.work.get(pool.name, {})
        most = sorted(needs, key=lambda model: (-needs[model], model))
        words = [self._model_words(model, needs[model]) for model in most[:_TOLD_MODELS]]
        if len(most) > _TOLD_MODELS:
            rest = sum(needs[model] for model in most[_TOLD_MODELS:])
            words.append(f"{len(most) - _TOLD_MODELS} more models need {rest:.2f} replicas")
        return words

    def _model_words(self, model: str, replicas: float) -> str:
        load, plan = self._seen.models[model], self._models[model]
        words = (
            f"{model}: {load.waiting:,} jobs wait, {load.delivered:,} are being run, {load.arrivals_per_s:.1f} come"
            f" each second; to be answered within {horizon_s(plan, load):.1f} s they need {replicas:.2f} replicas here"
        )
        return words + ", and all its pools together are too few" if model in self._demand.unmet else words
