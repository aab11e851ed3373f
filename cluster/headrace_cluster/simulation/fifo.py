"""Batches in the order of arrival, in the simulator: what `@serve.batch` would do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from headrace_cluster.simulation.jobs import Jobs
from headrace_cluster.simulation.pools import Replica

__all__ = ["FifoRouting"]


class FifoRouting:
    """Batches in the order of arrival, as `@serve.batch` forms them: up to so many jobs, waiting so long for company.

    It is kinder than Serve is: one queue for all replicas, from which whichever is idle takes the next batch, so no
    job waits behind a busy replica while another is idle; and a batch whose replica died runs again, first in turn.

    Args:
        jobs: what is to be routed.
        max_jobs: of one batch.
        wait_timeout_s: how long the first of a batch waits for company.
        slots: jobs that a replica has at once, where they end one by one; 0: it has one batch.
    """

    def __init__(self, jobs: Jobs, *, max_jobs: int, wait_timeout_s: float, slots: int = 0) -> None:
        self._jobs = jobs
        self._max_jobs = 1 if slots else max_jobs
        self._timeout_s = 0.0 if slots else wait_timeout_s
        self._places = slots or 1
        self._queue: deque[int] = deque()
        self._taken: dict[str, int] = {}
        self._idle: list[str] = []

    @property
    def waiting(self) -> int:
        """All that are queued."""
        return len(self._queue)

    def arrived(self, job: int) -> bool:
        """At the end of the queue."""
        self._queue.append(job)
        return bool(self._idle)

    def replicas_changed(self, replicas: Iterable[Replica]) -> None:
        """Whoever is new is idle."""
        self._taken = {replica.name: self._taken.get(replica.name, 0) for replica in replicas}
        self._idle = [name for name, taken in self._taken.items() for _ in range(self._places - taken)]

    def expired(self, now_s: float) -> Sequence[int]:
        """Serve knows no deadlines."""
        return ()

    def look(self, now_s: float) -> bool:
        """Serve sends nothing twice."""
        return False

    def next_batch(self, now_s: float) -> tuple[list[int], str, str] | None:
        """The first of the queue, once there are enough of them or the first has waited for long enough."""
        wait_s = self.wait_s(now_s)
        if wait_s is None or wait_s > 0:
            return None
        name = self._idle.pop()
        self._taken[name] += 1
        return [self._queue.popleft() for _ in range(min(self._max_jobs, len(self._queue)))], name, name

    def wait_s(self, now_s: float) -> float | None:
        """Until the first of the queue has waited for long enough."""
        if not self._queue or not self._idle:
            return None
        if len(self._queue) >= self._max_jobs:
            return 0.0
        return max(0.0, self._jobs.offset_s[self._queue[0]] + self._timeout_s - now_s)

    def came_back(self, ticket: Any, jobs: Sequence[int], now_s: float, run_s: float, *, left: int) -> Sequence[int]:
        """The replica is idle again."""
        if ticket in self._taken:
            self._taken[ticket] -= 1
            self._idle.append(ticket)
        return jobs

    def lost(self, ticket: Any, jobs: Sequence[int], now_s: float) -> Sequence[int]:
        """They are the first to run again."""
        self._queue.extendleft(reversed(jobs))
        return ()
