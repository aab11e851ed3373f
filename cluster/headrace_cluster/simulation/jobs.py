"""A model's jobs as the event loop wants them, and what batches of them really take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_cluster.simulation.arrivals import ModelArrivals
from headrace_cluster.simulation.trace import Work

__all__ = ["Jobs"]


class Jobs:
    """Plain lists: an element of an array costs five times as much to read in Python.

    Args:
        arrivals: what was drawn.
        work: what a replica of speed 1 takes for it.
        padded: whether the shorter jobs of a batch are padded to its longest.
    """

    def __init__(self, arrivals: ModelArrivals, work: Work, *, padded: bool) -> None:
        self.arrivals = arrivals
        self.work = work
        self.offset_s: list[float] = arrivals.offset_s.tolist()
        self.tokens: list[int] = arrivals.tokens.tolist()
        self.tenant: list[int] = arrivals.tenant.tolist()
        self.tenants = arrivals.tenants
        self.priority: list[int] = arrivals.priority.tolist()
        self.deadline_s: list[float | None] = [d if d < np.inf else None for d in arrivals.deadline_s.tolist()]
        self.own_s: list[float] = ((work.job_s + work.token_s * arrivals.tokens) * arrivals.effort).tolist()
        """For each job, what it adds to its batch."""
        self._effort: list[float] = arrivals.effort.tolist()
        self._padded = padded

    def __len__(self) -> int:
        return len(self.offset_s)

    def run_s(self, batch: Sequence[int]) -> float:
        """What a batch takes on a replica of speed 1."""
        if not self._padded:
            return self.work.batch_s + sum(map(self.own_s.__getitem__, batch))
        each_s = self.work.job_s + self.work.token_s * max(self.tokens[job] for job in batch)
        return self.work.batch_s + each_s * sum(self._effort[job] for job in batch)

    def real_tokens(self, batch: Sequence[int]) -> int:
        """Tokens of a batch."""
        return sum(map(self.tokens.__getitem__, batch))

    def computed_tokens(self, batch: Sequence[int]) -> int:
        """The same with padding."""
        return len(batch) * max(self.tokens[job] for job in batch) if self._padded else self.real_tokens(batch)
