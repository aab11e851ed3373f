"""Batches that are out at replicas: who of them has not ended yet, job by job, or of two that run the same."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import DecodeError
from headrace.messages import Fate, JobOutcomes
from headrace_cluster.scheduling.batch_former import WaitingJob

__all__ = ["Flight", "Race"]


class Flight:
    """The jobs of one batch, by their places in it."""

    def __init__(self, jobs: Sequence[WaitingJob]) -> None:
        self._jobs = dict(enumerate(jobs))
        self.size = len(jobs)
        self.computed = False
        """Whether the replica's engine has done a step since it has the batch."""

    @property
    def left(self) -> list[WaitingJob]:
        """The jobs that have not ended."""
        return list(self._jobs.values())

    def take(self, outcomes: JobOutcomes) -> list[WaitingJob]:
        """Note what a replica says; the jobs that ended, in the order of its message.

        Raises:
            DecodeError: it names a job that is none of the batch, or has ended before.
        """
        self.computed |= outcomes.computed
        if not self._jobs.keys() >= set(outcomes.numbers) or len(set(outcomes.numbers)) < len(outcomes.numbers):
            raise DecodeError(f"not outcomes of {len(self._jobs)} jobs that are left of a batch of {self.size}")
        return [self._jobs.pop(number) for number in outcomes.numbers]

    def refused(self, outcomes: JobOutcomes) -> bool:
        """Whether a message says that the whole batch is not to be run there now."""
        return len(outcomes.fates) == self.size and all(fate == Fate.RETURNED for fate in outcomes.fates)


class Race:
    """A batch that may be out at two replicas at once: for each job, the first word counts.

    The jobs end as the replicas' answers reach Redis, where only one of them counts. This is the router's own view.
    """

    def __init__(self, jobs: Sequence[WaitingJob]) -> None:
        self._open = {id(job): job for job in jobs}
        self.out = 0
        """At how many replicas it is now."""

    @property
    def left(self) -> list[WaitingJob]:
        """The jobs of which nothing is known yet."""
        return list(self._open.values())

    def settle(self, job: WaitingJob) -> bool:
        """Something is known of a job. False if it was before."""
        return self._open.pop(id(job), None) is not None
