"""How evenly work was divided between tenants that all wanted more (Jain, Chiu and Hawe 1984)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace_cluster.simulation.arrivals import ModelArrivals
from headrace_cluster.simulation.outcome import Fate, Outcome

__all__ = ["jain"]

_WINDOWS: Final = 50


def jain(arrivals: ModelArrivals, outcome: Outcome, seconds: NDArray[np.float64]) -> tuple[float, float]:
    """The index, (Σx)² / (n·Σx²) over the tenants' work, times the seconds that it holds for; and those seconds.

    The run is cut into windows. In each, the tenants count that have more jobs of one priority waiting at its beginning
    than leave in it: they want more all the time. Where there are fewer than two, the window does not count. 1 is even;
    1/n is all for one of n.
    """
    if len(arrivals.tenants) < 2 or not len(arrivals):
        return 0.0, 0.0
    edges = np.linspace(0.0, float(outcome.end_s.max()), _WINDOWS + 1)
    width_s = edges[1] - edges[0]
    total = seconds_counted = 0.0
    for priority in np.unique(arrivals.priority):
        of_priority = arrivals.priority == priority
        tenant = arrivals.tenant[of_priority]
        size = (len(arrivals.tenants), _WINDOWS + 1)
        came = _counts(arrivals.offset_s[of_priority], tenant, edges, size)
        left = _counts(outcome.start_s[of_priority], tenant, edges, size)
        done = np.where(outcome.fate == Fate.ANSWERED, seconds, 0.0)[of_priority]
        work = _counts(outcome.start_s[of_priority], tenant, edges, size, done)[:, 1:]
        waiting = came.cumsum(axis=1) - left.cumsum(axis=1)
        counts = (waiting[:, :-1] > 0.5) & (waiting[:, :-1] >= left[:, 1:])
        for window in np.flatnonzero(counts.sum(axis=0) >= 2):
            x = work[counts[:, window], window]
            if x.any():
                total += width_s * x.sum() ** 2 / (len(x) * (x**2).sum())
                seconds_counted += width_s
    return float(total), float(seconds_counted)


def _counts(
    times_s: NDArray[np.float64],
    tenant: NDArray[np.int64],
    edges: NDArray[np.float64],
    size: tuple[int, int],
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """For each tenant, what falls into each window; column i is of what comes up to edge i."""
    table = np.zeros(size)
    column = np.searchsorted(edges, times_s, side="left").clip(0, size[1] - 1)
    np.add.at(table, (tenant, column), 1.0 if weights is None else weights)
    return table
