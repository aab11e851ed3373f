"""Asking after jobs that were handed over, and calling them off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import redis.asyncio

from headrace import scripts
from headrace.errors import FailureCode, ResultGoneError
from headrace.keys import GROUP, keys_of
from headrace.messages.inbox import pack_failure
from headrace.messages.job import CancelOutcome
from headrace.messages.record import Record
from headrace.messages.result import JobState, JobStatus
from headrace.server.connection import execute, translated

__all__ = ["CANCELLED_BODY", "cancel_jobs", "job_status"]

CANCELLED_BODY: Final = pack_failure(FailureCode.CANCELLED, "the job was cancelled")
"""The body of a `cancelled` entry."""


async def job_status(client: redis.asyncio.Redis, model: str, job_id: str) -> JobStatus:
    """Where a job is.

    Raises:
        ResultGoneError: no record of it: never submitted, or its retention is over.
    """
    async with translated("reading a job's record"):
        text = await execute(client, "GET", keys_of(model).record(job_id))
        if text is None:
            raise ResultGoneError(f"no record of job {job_id} of {model}: never submitted, or long ended")
        record = Record.parse(text)
        held = record.state in (JobState.WAITING, JobState.CANCELLING)
        deliveries = await _deliveries(client, model, record) if held else 0
    return record.to_status(model, deliveries)


async def _deliveries(client: redis.asyncio.Redis, model: str, record: Record) -> int:
    """How often a waiting job was delivered to a router."""
    lane, entry_id = keys_of(model).lanes[record.lane], record.entry_id
    pending = await execute(client, "XPENDING", lane, GROUP, entry_id, entry_id, 1)
    return int(pending[0][3]) % scripts.LONE_FAILURE if pending else 0


async def cancel_jobs(client: redis.asyncio.Redis, model: str, job_ids: Sequence[str]) -> list[CancelOutcome]:
    """Stop jobs that have not ended; the outcome of each, in order."""
    outcomes: list[CancelOutcome] = []
    for start in range(0, len(job_ids), scripts.MAX_JOBS):
        outcomes += await scripts.cancel(client, model, job_ids[start : start + scripts.MAX_JOBS], CANCELLED_BODY)
    return outcomes
