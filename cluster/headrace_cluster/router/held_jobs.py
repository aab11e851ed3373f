"""The jobs in a router's hands: read from a lane, and not yet known to have ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headrace.messages import Envelope, LaneEntry
from headrace_cluster.scheduling.batch_former import WaitingJob

__all__ = ["HeldJobs"]


class HeldJobs:
    """Every held job by its place, and what their payloads weigh."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, str], WaitingJob] = {}
        self.bytes = 0
        self.mean_bytes = 1024.0
        """What a payload has been on average."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[WaitingJob]:
        return iter(self._jobs.values())

    def __contains__(self, entry: LaneEntry) -> bool:
        return (entry.lane, entry.entry_id) in self._jobs

    def add(self, entry: LaneEntry, envelope: Envelope, tokens: int) -> WaitingJob:
        """Take a job in. Lane and entry id are its place: two lanes may give their entries the same ids."""
        size = len(entry.payload)
        job = WaitingJob(
            key=entry,
            tokens=tokens,
            bytes=size,
            priority=entry.priority,
            submitted_s=envelope.submitted_ms / 1000,
            deadline_s=envelope.deadline_ms / 1000 if envelope.deadline_ms else None,
            tenant=envelope.tenant,
        )
        self._jobs[entry.lane, entry.entry_id] = job
        self.bytes += size
        self.mean_bytes += 0.01 * (size - self.mean_bytes)
        return job

    def let_go(self, job: WaitingJob) -> None:
        """It has ended, or is somebody else's."""
        if self._jobs.pop((job.key.lane, job.key.entry_id), None) is not None:
            self.bytes -= job.bytes

    def named(self, job_ids: Iterable[str]) -> list[WaitingJob]:
        """Those of these ids. Looks at every job: it is for the rare cancellation."""
        wanted = set(job_ids)
        return [job for job in self._jobs.values() if job.key.envelope.job_id in wanted] if wanted else []
