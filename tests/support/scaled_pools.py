"""Pools without replicas: what the autoscaler decides comes true, or is only asked for, and time is moved by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace_cluster.autoscaling.autoscaler import Autoscaler, Decision
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["CPU", "GPU", "World", "costing", "one_pool", "plan", "two_pools"]

CPU, GPU = "m@cpu", "m@gpu"


def costing(job_s: float) -> CostModel:
    """A replica that takes so long for each job, however many there are."""
    return CostModel((0.0, job_s, 0.0))


def plan(*pools: PoolPlan, **model: Any) -> ScalingPlan:
    model = {"max_jobs": 1} | model
    return ScalingPlan((ModelPlan("m", tuple(pool.name for pool in pools), **model),), pools)


class World:
    """Pools that do at once what is decided, and a clock that is moved by hand."""

    def __init__(self, scaling: ScalingPlan, costs: Mapping[str, float], start_up_s: float = 5.0) -> None:
        self.autoscaler = Autoscaler(scaling)
        self.now_s = 1000.0
        self.start_up_s = start_up_s
        self.start_ups_s: dict[str, float] = {}
        """Of pools that take longer, or less long, than the others."""
        self.costs = {pool: {"m": costing(job_s)} for pool, job_s in costs.items()}
        self.targets = {pool.name: pool.min_replicas for pool in scaling.pools}
        self.running = dict(self.targets)
        self.unplaceable: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}

    def look(self, **load: Any) -> Observation:
        pools = {
            name: PoolState(
                self.running[name],
                self.targets[name],
                self.start_ups_s.get(name, self.start_up_s),
                costs,
                self.unplaceable.get(name, ""),
            )
            for name, costs in self.costs.items()
        }
        return Observation(self.now_s, {"m": ModelLoad(**load)}, pools)

    def decide(self, after_s: float = 1.0, *, starting: bool = False, **load: Any) -> dict[str, int]:
        """Time passes, and what is decided comes true, or at least is asked for."""
        self.now_s += after_s
        self.decisions = {made.pool: made for made in self.autoscaler.decide(self.now_s, self.look(**load))}
        self.targets |= {pool: made.replicas for pool, made in self.decisions.items()}
        if not starting:
            self.running = dict(self.targets)
        return dict(self.targets)

    def reasons(self, pool: str = CPU) -> str:
        return "; ".join(self.decisions[pool].reasons)


def one_pool(least: int = 1, most: int = 100, job_s: float = 1.0, **model: Any) -> World:
    return World(plan(PoolPlan(CPU, least, most, cool_down_s=20), **model), {CPU: job_s})


def two_pools(job_s: Mapping[str, float], gpu_cost: float, least: int = 0, **model: Any) -> World:
    pools = (PoolPlan(CPU, least, 10, cost=1.0), PoolPlan(GPU, least, 10, cost=gpu_cost))
    return World(plan(*pools, **model), job_s)
