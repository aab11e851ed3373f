"""Ending jobs that never run, or never again: what a router answers itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import redis.asyncio

from headrace.codec import pack, unpack
from headrace.control import CANCELLED_BODY
from headrace.errors import FailureCode
from headrace.messages import Status, pack_failure
from headrace.scripts import Answer, GiveBack, RetryOutcome
from headrace.serving.answers import give_back, write_answers
from headrace.serving.ending import Ending, policy_of
from headrace_cluster.router.delivered import read_partial
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.scheduling.routing import RouterCounts

__all__ = ["Ender"]

_EXPIRED_BODY: Final = pack_failure(
    FailureCode.EXPIRED,
    "the deadline passed, or could not be met any more, before a replica was free",
    hint="submit with more time",
)

_CUT_SHORT: Final = {Status.EXPIRED: "deadline", Status.CANCELLED: "cancelled"}
"""Why an answer ended that somebody had begun, by what became of its job."""


class Ender:
    """Writes terminal entries, in tasks of their own: Redis may be away for a while.

    Args:
        model: whose jobs.
        client: where answers go.
        counts: what is ended is counted here.
        spawn: starts a task.
        let_go: is told of each job that has ended.
    """

    def __init__(
        self,
        model: str,
        client: redis.asyncio.Redis,
        counts: RouterCounts,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        let_go: Callable[[Sequence[WaitingJob]], None],
    ) -> None:
        self._model = model
        self._client = client
        self._counts = counts
        self._spawn = spawn
        self._let_go = let_go

    def refuse(self, job: WaitingJob, code: FailureCode, message: str, *, hint: str) -> None:
        """A job that cannot run here."""
        self._counts.refused += 1
        self._end([job], Status.ERROR, pack_failure(code, message, hint=hint))

    def expire(self, jobs: Sequence[WaitingJob]) -> None:
        """Jobs whose deadline passed while they waited."""
        self._counts.expired += len(jobs)
        self._end(jobs, Status.EXPIRED, _EXPIRED_BODY)

    def cancel(self, jobs: Sequence[WaitingJob]) -> None:
        """Jobs that somebody called off."""
        self._counts.cancelled += len(jobs)
        self._end(jobs, Status.CANCELLED, CANCELLED_BODY)

    def convict(self, job: WaitingJob, failure: Exception, *, died: bool) -> None:
        """A job that failed alone again and again. One that kills is set aside; else its retry policy decides."""
        self._counts.convicted += 1
        times = f"{job.lone_failures} times alone, {job.attempts} times in all; the last time: {failure}"
        if died:
            self._end([job], Status.DEAD, pack_failure(FailureCode.POISON, f"its replica died {times}"))
        elif Ending.of(job.key.envelope, FailureCode.POOL_FAILED) is Ending.AGAIN:
            self._spawn(self._give_back(job))
        else:
            ending = Ending.of(job.key.envelope, FailureCode.POOL_FAILED)
            hint = "see the replicas' logs"
            body = pack_failure(FailureCode.POOL_FAILED, f"its batch failed {times}", hint=hint, retryable=True)
            self._end([job], ending.status, body)

    def _end(self, jobs: Sequence[WaitingJob], status: Status, body: bytes) -> None:
        if jobs:
            self._spawn(self._write(jobs, status, body))

    async def _write(self, jobs: Sequence[WaitingJob], status: Status, body: bytes) -> None:
        answers = [await self._answer(job, status, body) for job in jobs]
        await write_answers(self._client, self._model, answers)
        self._let_go(jobs)

    async def _answer(self, job: WaitingJob, status: Status, body: bytes) -> Answer:
        entry = job.key
        if status in _CUT_SHORT and (job.attempts or job.taken_over):
            body = await self._with_partial(entry.envelope.job_id, body, _CUT_SHORT[status])
        return Answer(entry.lane, entry.entry_id, entry.text, status, body)

    async def _with_partial(self, job_id: str, body: bytes, reason: str) -> bytes:
        """The body with what was delivered of an answer before its replica died."""
        partial = await read_partial(self._client, self._model, job_id, reason)
        return body if partial is None else pack(unpack(body) | {"partial": partial})

    async def _give_back(self, job: WaitingJob) -> None:
        entry = job.key
        delay_ms = policy_of(entry.envelope).delay_ms(entry.envelope.attempt)
        back = GiveBack(entry.lane, entry.entry_id, entry.text, delay_ms)
        [said] = await give_back(self._client, self._model, [back])
        if said is RetryOutcome.CANCELLING:
            self.cancel([job])
        else:
            self._counts.delayed += 1
            self._let_go([job])
