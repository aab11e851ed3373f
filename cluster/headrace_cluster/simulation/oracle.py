"""What nobody can beat: bounds on attainment and on cost that hold for every policy, even one that knows the future.

*Work.* A job takes at least its own seconds, and its share of what its batch takes, were all batches full: of jobs or
of tokens, whichever makes more. Replicas of any speed are given their pool's; stragglers, overhead and start-up are
left out. Nobody can do with less.

*Attainment.* In any stretch of time, what comes and is due within it must be done within it, by at most all replicas
there may be. Where that is more than they can do, at least so many jobs miss their deadline as make up for the
excess, were the largest left out. Stretches that do not overlap add up; those whose sum is largest are chosen (weighted
interval scheduling). Jobs may be divided among replicas at will, interrupted and resumed; replicas start at once. It
is the load condition that is necessary for any schedule, preemptive and clairvoyant ones included (Dertouzos 1974, for
one machine, where it is sufficient).

Whoever leaves out the largest has read the sizes, and has large jobs wait in vain whenever there is too much to do. How
many are late if those that are left out are of the usual size is no bound, but what can be had without that.

*Cost.* Work is done where it costs least, and replicas are there exactly while they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace_cluster.config.models import BatchingConfig
from headrace_cluster.simulation.arrivals import ModelArrivals
from headrace_cluster.simulation.trace import PoolTrace, Work

__all__ = ["Oracle", "consult", "least_s"]

_GRID: Final = 128
"""Between how many times stretches are tried."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Oracle:
    """The bounds for one model."""

    least_s: Floats
    """For each job, the least that a replica of speed 1 takes for it."""
    missed: int
    """How many jobs with a deadline miss it at least."""
    missed_blindly: int
    """How many do if those that are left out are of the usual size, and not the largest."""
    cost_per_s: float
    """The least that a second of a replica of speed 1 costs."""

    def cost(self, jobs: NDArray[np.bool_]) -> float:
        """The least that answering these jobs costs."""
        return float(self.least_s[jobs].sum() * self.cost_per_s)


def consult(arrivals: ModelArrivals, work: Work, batching: BatchingConfig, pools: Sequence[PoolTrace]) -> Oracle:
    """The bounds for one model's jobs on its pools."""
    seconds, lanes = least_s(arrivals, work, batching), work.slots or 1
    fastest = max(pool.speed for pool in pools)
    alone_s = (work.job_s + work.token_s * arrivals.tokens) * arrivals.effort / fastest
    dated = np.isfinite(arrivals.deadline_s)
    possible = dated & (alone_s <= arrivals.deadline_s - arrivals.offset_s)
    capacity = sum(pool.max_replicas * pool.speed for pool in pools) * lanes
    impossible = int(dated.sum() - possible.sum())
    missed, blindly = _least_missed(
        arrivals.offset_s[possible], arrivals.deadline_s[possible], seconds[possible], capacity
    )
    cost_per_s = min(pool.cost / pool.speed for pool in pools) / lanes
    return Oracle(seconds, impossible + missed, impossible + blindly, cost_per_s)


def least_s(arrivals: ModelArrivals, work: Work, batching: BatchingConfig) -> Floats:
    """For each job, the least that a replica, or a slot, of speed 1 takes for it."""
    own_s = (work.job_s + work.token_s * arrivals.tokens) * arrivals.effort
    if work.slots:
        return own_s + work.batch_s
    by_jobs = np.full(len(arrivals), 1 / batching.max_jobs)
    # The first job of a batch may be larger than the budget, and then is alone: no share is above 1.
    by_tokens = np.minimum(1.0, arrivals.tokens / batching.max_tokens)
    return own_s + work.batch_s * max(by_jobs, by_tokens, key=np.sum)


def _least_missed(release_s: Floats, due_s: Floats, seconds: Floats, capacity: float) -> tuple[int, int]:
    """How many jobs must miss their deadline, by the best set of stretches of a grid: if the largest do, and if any."""
    if not len(seconds):
        return 0, 0
    grid = np.linspace(release_s.min(), due_s.max(), _GRID + 1)
    first = np.searchsorted(grid, release_s, side="right") - 1
    last = np.searchsorted(grid, due_s, side="left")
    within = _work_within(first, last, seconds)
    excess = within - capacity * (grid[None, :] - grid[:, None]) * (1 + 1e-9)
    missed = np.zeros((_GRID + 1, 2), dtype=np.int64)
    for end in range(1, _GRID + 1):
        missed[end] = missed[end - 1]
        for begin in np.flatnonzero(excess[:end, end] > 0):
            inside = np.sort(seconds[(first >= begin) & (last <= end)])[::-1]
            dropped = int(np.searchsorted(np.cumsum(inside), excess[begin, end])) + 1
            blindly = max(dropped, round(excess[begin, end] / float(inside.mean())))
            missed[end] = np.maximum(missed[end], missed[begin] + (dropped, blindly))
    return int(missed[_GRID, 0]), int(missed[_GRID, 1])


def _work_within(first: NDArray[np.int64], last: NDArray[np.int64], seconds: Floats) -> Floats:
    """For each stretch of the grid, the work that comes and is due within it."""
    table = np.zeros((_GRID + 1, _GRID + 1))
    np.add.at(table, (np.minimum(first, _GRID), np.minimum(last, _GRID)), seconds)
    from_begin = np.cumsum(table[::-1], axis=0)[::-1]
    return np.asarray(np.cumsum(from_begin, axis=1))
