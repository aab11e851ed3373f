"""The record of a job: what stands under its id for as long as the id is known.

One line of text: `<state> <lane> <entry id> <finished ms>` and then the envelope. The entry is the lane's while the
job waits or runs, the inbox's once it has ended, and 0-0 while it is delayed; finished is 0 until it has ended.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.errors import DecodeError
from headrace.keys import LANES, priority_of
from headrace.messages.envelope import Envelope
from headrace.messages.job import PRIORITIES
from headrace.messages.result import JobState, JobStatus

__all__ = ["Record"]


class Record(NamedTuple):
    """A parsed record."""

    state: JobState
    lane: int
    entry_id: str
    finished_ms: int
    envelope: Envelope

    @classmethod
    def parse(cls, text: bytes) -> Record:
        """Read a record.

        Raises:
            DecodeError: it is none.
        """
        try:
            state, number, entry_id, finished, envelope = text.split(b" ", 4)
            lane, finished_ms = int(number), int(finished)
            if not 0 <= lane < LANES or finished_ms < 0:
                raise ValueError("a number in it is none")
            return cls(JobState(state.decode()), lane, entry_id.decode(), finished_ms, Envelope.parse(envelope))
        except ValueError as error:
            raise DecodeError(f"not a record: {text[:200]!r}: {error}") from None

    def to_status(self, model: str, deliveries: int) -> JobStatus:
        """What a client is told; a waiting job that was delivered is running, and one that is delayed waits."""
        return JobStatus(
            model=model,
            id=self.envelope.job_id,
            state=JobState.RUNNING if deliveries and self.state is JobState.WAITING else self.state,
            inbox=self.envelope.inbox,
            tenant=self.envelope.tenant,
            priority=PRIORITIES[priority_of(self.lane)],
            submitted_ms=self.envelope.submitted_ms,
            finished_ms=self.finished_ms or None,
            deliveries=deliveries,
            entry_id=self.entry_id,
        )
