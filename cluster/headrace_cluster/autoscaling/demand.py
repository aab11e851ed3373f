"""How many replicas of each pool the work of all models needs, as fractions: the arithmetic of the autoscaler.

Each model needs as many as its steady arrivals fill, and as many as do what is there within its horizon: the more of
both, not the sum. For jobs are done in their order, so those that arrive meanwhile have as long as the others: if B
jobs are done within H, and as many a second as arrive, then none is ever later than H. A replica that runs does some of
the B in that time; one that must start first does fewer, and costs its start besides.

While what there is does the work in good time, nothing is asked for, unless it saves a good part of the price: a GPU
that runs is given up for cores that are to start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headrace_cluster.autoscaling.filling import Filling, Room
from headrace_cluster.autoscaling.observation import ModelLoad, Observation
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan

__all__ = ["Demand", "share_out"]

_WORTH_CHANGING = 0.8
"""What part of the price of what runs others must cost at most that are to take its place: rates come and go."""


@dataclass(slots=True)
class Demand:
    """What the work needs."""

    replicas: dict[str, float] = field(default_factory=dict)
    """For each pool, how many replicas of it, as a fraction."""
    work: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by model."""
    unmet: set[str] = field(default_factory=set)
    """Models whose work is more than all their pools may do in time."""

    def add(self, pool: str, model: str, replicas: float) -> None:
        """Give a model so many more replicas of a pool."""
        self.replicas[pool] = self.replicas.get(pool, 0.0) + replicas
        by_model = self.work.setdefault(pool, {})
        by_model[model] = by_model.get(model, 0.0) + replicas


def share_out(plan: ScalingPlan, seen: Observation, rooms: Mapping[str, Room], idle: Iterable[str] = ()) -> Demand:
    """The replicas that the work of all models needs.

    Args:
        plan: the models and pools.
        seen: how they are.
        rooms: for each pool, what it has and may have.
        idle: models that want nothing.
    """
    demand, resting = Demand(), set(idle)
    pools = {pool.name: pool for pool in plan.pools}
    for model in sorted(plan.models, key=lambda each: (len(each.pools), each.name)):  # the least choice goes first
        load = seen.models.get(model.name)
        if load is None or model.name in resting:
            continue
        filling = _filled(model, load, pools, seen, rooms, demand)
        for pool, replicas in filling.replicas.items():
            demand.add(pool, model.name, replicas)
        if filling.unmet:
            demand.unmet.add(model.name)
    return demand


def _filled(
    model: ModelPlan,
    load: ModelLoad,
    pools: Mapping[str, PoolPlan],
    seen: Observation,
    rooms: Mapping[str, Room],
    demand: Demand,
) -> Filling:
    """A model's work among its replicas: those that there are if they do it in good time, unless others cost less."""
    there, any_ = (Filling(model, load, pools, seen.pools, rooms, demand.replicas, more=more) for more in (False, True))
    if patient := there.does_in_good_time():
        there.fill()
        if len(model.pools) == 1:
            return there
    any_.fill()
    return any_ if not patient or any_.price < _WORTH_CHANGING * there.price else there
