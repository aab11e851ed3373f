"""Which job kills replicas: found by halving, at the price of few replicas and of no innocent job.

When a batch does not come back, any of its jobs may be why. So the batch is split, and each half runs on a
replica that has nothing else; what comes back was innocent, what does not is split again. Only a job that
fails while it is all alone is ever blamed, and only when that happens twice: the first time may have been
the machine. One such job in a batch of n costs at most log2(n) + 2 replicas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from headrace_cluster.scheduling.batch_former import WaitingJob

__all__ = ["Quarantine"]


class Quarantine:
    """Groups of suspects that wait to run, each alone on a replica.

    Args:
        lone_failures: after how many failures alone a job is convicted.
    """

    def __init__(self, *, lone_failures: int = 2) -> None:
        self._lone_failures = lone_failures
        self._groups: deque[list[WaitingJob]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def add(self, jobs: Sequence[WaitingJob]) -> None:
        """Suspect jobs that failed together, or that were with others on a replica that died."""
        middle = (len(jobs) + 1) // 2
        for half in (jobs[:middle], jobs[middle:]):
            if half:
                self._groups.append(list(half))

    def put_back(self, group: Sequence[WaitingJob]) -> None:
        """A group did not get to run: it is the next."""
        self._groups.appendleft(list(group))

    def failed(self, group: Sequence[WaitingJob], replica: str) -> WaitingJob | None:
        """A group that ran alone on a replica failed. Returns the job that is convicted by it, if one is."""
        if len(group) > 1:
            self.add(group)
            return None
        [job] = group
        job.lone_failures += 1
        job.failed_on = replica
        if job.lone_failures >= self._lone_failures:
            return job
        self._groups.append([job])
        return None

    @property
    def shunned(self) -> str | None:
        """The replica on which the next group should not run, if another is idle: it may be to blame itself."""
        group = self._next()
        return group[0].failed_on if len(group) == 1 else None

    def take(self) -> list[WaitingJob]:
        """The group that has waited longest, of those that have failed alone least. Empty if there is none.

        Who is most likely innocent goes first: behind an open breaker he would wait longest for the others' trial.
        """
        group = self._next()
        if group:
            self._groups.remove(group)
        return group

    def _next(self) -> list[WaitingJob]:
        return min(self._groups, key=lambda group: max(job.lone_failures for job in group), default=[])

    def discard(self, jobs: Iterable[WaitingJob]) -> list[WaitingJob]:
        """Take out jobs that shall not run any more; returns those that were here."""
        unwanted = set(map(id, jobs))
        found = [job for group in self._groups for job in group if id(job) in unwanted]
        if found:
            left = ([job for job in group if id(job) not in unwanted] for group in self._groups)
            self._groups = deque(group for group in left if group)
        return found

    def expired(self, now_s: float) -> list[WaitingJob]:
        """Take out every job whose deadline has passed."""
        late = (job for group in self._groups for job in group if job.deadline_s is not None)
        return self.discard([job for job in late if job.deadline_s is not None and job.deadline_s <= now_s])
