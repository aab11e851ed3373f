"""What somebody would pay who knew all jobs beforehand, and could still not start half a replica, or one for nothing.

The oracle's cost is a bound for everybody, and further from what can be had the longer replicas take to start and the
larger they are. The planner has the same replicas as every policy: whole ones, which are paid for from the moment they
begin to start, and as many as there must be at least. It knows every job and chooses how many run in each step of a
grid, at the least cost at which all work is done by its deadline: dynamic programming over the replicas of each pool
and the work that waits. Work is a fluid to it, which any replica does at its speed: batches are full, nothing is late
by chance, and to have none of it wait as long as it may is no aim. So it is no policy that could be built, but what it
pays can nearly be had, and what is paid beyond it is the price of not knowing the future.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace_cluster.simulation.trace import PoolTrace

__all__ = ["planned_cost"]

_STEPS: Final = 500
"""Into how many steps the time is cut at most."""
_STEPS_A_START: Final = 8
"""Into how many the shortest start is cut, if that makes fewer."""
_LEVELS: Final = 64
"""How many numbers of replicas of one pool are told apart at most."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """The numbers of replicas that one pool may have."""

    counts: Ints
    least: int
    start_cost: float
    """What one more replica costs before it works."""
    cost_per_s: float
    speed: float


def planned_cost(
    release_s: Floats, due_s: Floats, seconds: Floats, pools: Sequence[PoolTrace], *, horizon_s: float
) -> float:
    """What the planner pays to have these jobs done by their deadlines.

    Args:
        release_s: when each job comes.
        due_s: by when it is to be done; infinite where that does not matter.
        seconds: what a replica of speed 1 takes for it.
        pools: what may run, at least and at most.
        horizon_s: until when there must be as many replicas as there are at least.
    """
    if not len(release_s):
        return sum(pool.min_replicas * pool.cost for pool in pools) * horizon_s
    last_s = float(np.max(due_s, where=np.isfinite(due_s), initial=max(horizon_s, release_s.max())))
    step_s = max(min(pool.start_up_s for pool in pools) / _STEPS_A_START, last_s / _STEPS, 1e-3)
    steps = math.ceil(last_s / step_s) + 1
    came = np.bincount((release_s / step_s).astype(np.int64), weights=seconds, minlength=steps).cumsum()
    dated = np.isfinite(due_s)
    last = np.minimum(np.where(dated, due_s, last_s) / step_s, steps - 1).astype(np.int64)
    due = np.bincount(last, weights=seconds, minlength=steps).cumsum()
    levels = [_levels(pool, float(np.diff(came, prepend=0.0).max()) / step_s) for pool in pools]
    return _Plan(levels, step_s).cost(came, due, math.ceil(horizon_s / step_s))


def _levels(pool: PoolTrace, peak: float) -> _Levels:
    """No more replicas are of use than do the work of the busiest step in that step."""
    most = min(pool.max_replicas, max(pool.min_replicas, math.ceil(peak / pool.speed)))
    stride = -(-(most + 1) // _LEVELS)
    counts = np.unique(np.append(np.arange(0, most + 1, stride), (pool.min_replicas, most)))
    return _Levels(counts, pool.min_replicas, pool.start_up_s * pool.cost, pool.cost, pool.speed)


class _Plan:
    """Dynamic programming: the least cost for each number of replicas and each amount of work that waits."""

    def __init__(self, levels: Sequence[_Levels], step_s: float) -> None:
        self._levels = levels
        shape = tuple(len(level.counts) for level in levels)
        capacity, cost, least = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=np.bool_)
        for axis, level in enumerate(levels):
            along = np.moveaxis(np.broadcast_to(level.counts, (*np.delete(shape, axis), shape[axis])), -1, axis)
            capacity += along * level.speed * step_s
            cost += along * level.cost_per_s * step_s
            least &= along >= level.least
        self._cell = float(capacity[capacity > 0].min())
        """The smallest amount of work that is told apart: what the smallest replica does in a step."""
        self._does: list[int] = np.rint(capacity / self._cell).astype(np.int64).ravel().tolist()
        self._step_cost = cost
        self._too_few = np.where(least, 0.0, np.inf)

    def cost(self, came: Floats, due: Floats, steps_with_least: int) -> float:
        """The least that it costs in the end.

        Args:
            came: the work that has come by the end of each step.
            due: the work that has to be done by then.
            steps_with_least: in how many steps there are as many replicas as there must be at least.
        """
        arrived = np.rint(came / self._cell).astype(np.int64)
        # A cell of grace: rounding must not make a deadline what nobody can keep.
        may_wait = np.maximum(0, np.ceil((came - due) / self._cell)).astype(np.int64) + 1
        may_wait[-1] = 0
        costs = np.full((*self._step_cost.shape, 1), np.inf)
        costs[(*(int(np.searchsorted(level.counts, level.least)) for level in self._levels), 0)] = 0.0
        before = 0
        for step, (total, waits) in enumerate(zip(arrived.tolist(), may_wait.tolist(), strict=True)):
            step_cost = self._step_cost + (self._too_few if step < steps_with_least else 0.0)
            costs = self._served(self._changed(costs) + step_cost[..., None], total - before, waits)
            before = total
        return float(costs.min())

    def _changed(self, costs: Floats) -> Floats:
        """Some replicas more, which cost their starts, or fewer, which costs nothing."""
        for axis, level in enumerate(self._levels):
            starts = np.expand_dims(level.counts * level.start_cost, tuple(range(1, costs.ndim - axis)))
            more = np.minimum.accumulate(costs - starts, axis=axis) + starts
            fewer = np.flip(np.minimum.accumulate(np.flip(costs, axis), axis=axis), axis)
            costs = np.minimum(more, fewer)
        return costs

    def _served(self, costs: Floats, came: int, may_wait: int) -> Floats:
        """Work comes, and each number of replicas does of it what it can: to do it later is never of use."""
        rows = costs.reshape(len(self._does), -1)
        after = np.full((len(rows), may_wait + 1), np.inf)
        for row, does, left in zip(rows, self._does, after, strict=True):
            done = does - came
            if done < 0:
                kept = row[: max(0, may_wait + 1 + done)]
                left[-done : len(kept) - done] = kept
                continue
            left[0] = row[: done + 1].min()
            kept = row[done + 1 : done + 1 + may_wait]
            left[1 : 1 + len(kept)] = kept
        return after.reshape(*costs.shape[:-1], -1)
