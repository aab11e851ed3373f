"""A replica: batches in, answers written to Redis, fates out. No Ray here; a Serve deployment wraps it.

While one batch computes, the next is unpacked and tokenized on another thread, and the answers of the last
are on their way: three stages, each with a thread or the event loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from headrace.answers import give_back, write_answers
from headrace.codec import MAX_PAYLOAD_BYTES
from headrace.connection import commands
from headrace.control import CANCELLED_BODY
from headrace.ending import Ending, policy_of
from headrace.errors import DecodeError, FailureCode
from headrace.messages import (
    Batch,
    BatchOutcome,
    Envelope,
    Fate,
    LaneEntry,
    Status,
    pack_answer,
    pack_failure,
    unpack_payload,
)
from headrace.scripts import Answer, GiveBack, RetryOutcome
from headrace_workers.engines.base import Engine, ItemError, Prepared
from headrace_workers.turns import Turns

__all__ = ["Replica"]

log = logging.getLogger("headrace.replica")

_CLOCK_KEPT_S: Final = 60.0


@dataclass(slots=True)
class _Task:
    """One job on its way through the replica: in the end it has an output or an error."""

    entry: LaneEntry
    envelope: Envelope
    item: Prepared | None = None
    output: Any = None
    error: ItemError | None = None


class _HeardClock:
    """The server's clock as messages tell it, in seconds; `at_s` is this process's monotonic time.

    Each message says when it was sent. One that lay somewhere on its way, in a process that was stopped
    perhaps, tells less than an earlier one that came at once.
    """

    def __init__(self) -> None:
        self._offset_s = float("-inf")
        self._heard_s = float("-inf")

    def hear(self, sent_s: float, at_s: float) -> None:
        """A message that was sent at `sent_s` came in. What others told is forgotten after a while: clocks are set."""
        if sent_s - at_s >= self._offset_s or at_s - self._heard_s > _CLOCK_KEPT_S:
            self._offset_s, self._heard_s = sent_s - at_s, at_s

    def now_s(self, at_s: float) -> float:
        """The time on the server."""
        return at_s + self._offset_s


class Replica:
    """Hosts one engine and answers the jobs of one model, whichever of its shards they are in.

    Args:
        model: the name under which producers know it.
        engine: runs the jobs.
        redis_url: where answers go.
    """

    def __init__(self, model: str, engine: Engine, *, redis_url: str) -> None:
        self.model = model
        self.engine = engine
        self._redis = commands(redis_url)
        self._clock = _HeardClock()
        self._turns = Turns()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="headrace-prepare")
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="headrace-compute")

    async def run(self, message: bytes) -> bytes:
        """Run a packed `Batch`; the packed `BatchOutcome` tells the fate of every job.

        Returns only when every answer is in Redis, however long Redis takes to come back; or at once, with all
        jobs, if this batch and others here must not run beside each other.
        """
        batch = Batch.from_bytes(message)
        now_s = time.monotonic()
        self._clock.hear(batch.now_ms / 1000, now_s)
        if not self._turns.enter(now_s, alone=batch.alone):
            nothing = [0] * len(batch.entries)
            return BatchOutcome([Fate.RETURNED] * len(nothing), nothing, 0.0).to_bytes()
        try:
            return (await self._run(batch)).to_bytes()
        finally:
            self._turns.leave()

    async def _run(self, batch: Batch) -> BatchOutcome:
        loop = asyncio.get_running_loop()
        tasks = await loop.run_in_executor(self._preparing, self._prepare, batch)
        run_s = await loop.run_in_executor(self._computing, self._compute, tasks)
        answers = await loop.run_in_executor(self._preparing, self._answers, batch, tasks, run_s)
        return BatchOutcome(
            fates=await self._write(batch.model, answers),
            tokens=[task.item.tokens if task.item else 0 for task in tasks],
            run_s=run_s,
        )

    async def _write(self, model: str, answers: Sequence[Answer | GiveBack]) -> list[Fate]:
        """End the jobs, and hand back those that are to be tried again; the fate of each, in order."""
        fates = [Fate.LATE] * len(answers)
        ended = [(n, answer) for n, answer in enumerate(answers) if isinstance(answer, Answer)]
        for n, back in enumerate(answers):
            if isinstance(back, GiveBack):
                [said] = await give_back(self._redis, model, [back])
                if said is RetryOutcome.AGAIN:
                    fates[n] = Fate.DELAYED
                elif said is RetryOutcome.CANCELLING:
                    ended.append((n, Answer(*back[:3], Status.CANCELLED, CANCELLED_BODY)))
        visible = await write_answers(self._redis, model, [answer for _, answer in ended])
        for (n, _), seen in zip(ended, visible, strict=True):
            fates[n] = Fate.ANSWERED if seen else Fate.LATE
        return fates

    # -- preparing --------------------------------------------------------------------------------------

    def _prepare(self, batch: Batch) -> list[_Task]:
        tasks = [_Task(entry, entry.envelope) for entry in batch.entries]
        requests: list[tuple[_Task, tuple[Any, dict[str, Any]]]] = []
        for task in tasks:
            try:
                requests.append((task, unpack_payload(task.entry.payload)))
            except DecodeError as error:
                task.error = ItemError(FailureCode.UNDECODABLE, error.reason, hint="docs/wire.md has the format")
        prepared = self._prepare_together([request for _, request in requests])
        for (task, _), item in zip(requests, prepared, strict=True):
            if isinstance(item, ItemError):
                task.error = item
            else:
                task.item = item
        return tasks

    def _prepare_together(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        try:
            prepared = self.engine.prepare(requests)
            if len(prepared) != len(requests):
                raise RuntimeError(f"the engine prepared {len(prepared)} of {len(requests)} jobs")
        except Exception as error:
            if len(requests) > 1:
                log.warning("preparing %d jobs failed (%r); they are prepared one by one", len(requests), error)
                return [item for request in requests for item in self._prepare_together([request])]
            log.exception("preparing a job failed")
            return [_failed(error) for _ in requests]
        return prepared

    # -- computing --------------------------------------------------------------------------------------

    def _compute(self, tasks: Sequence[_Task]) -> float:
        """Run what can be run; returns the seconds it took."""
        started_s = time.monotonic()
        self._run_engine(tasks)
        return time.monotonic() - started_s

    def _run_engine(self, tasks: Sequence[_Task]) -> None:
        """Run jobs together, or one by one if that fails."""
        tasks = _in_time(tasks, self._clock.now_s(time.monotonic()) * 1000)
        if not tasks:
            return
        try:
            outputs = self.engine.run([task.item for task in tasks if task.item is not None])
            if len(outputs) != len(tasks):
                raise RuntimeError(f"the engine gave {len(outputs)} outputs for {len(tasks)} jobs")
        except Exception as error:
            if len(tasks) > 1:
                log.warning("a batch of %d failed (%r); its jobs run one by one", len(tasks), error)
                for task in tasks:
                    self._run_engine([task])
                return
            log.exception("job %s failed alone", tasks[0].envelope.job_id)
            outputs = [_failed(error)]
        for task, output in zip(tasks, outputs, strict=True):
            if isinstance(output, ItemError):
                task.error = output
            else:
                task.output = output

    # -- answering --------------------------------------------------------------------------------------

    def _answers(self, batch: Batch, tasks: Sequence[_Task], run_s: float) -> list[Answer | GiveBack]:
        return [self._answer(task, batch.now_ms, run_s) for task in tasks]

    def _answer(self, task: _Task, now_ms: int, run_s: float) -> Answer | GiveBack:
        place = (task.entry.lane, task.entry.entry_id, task.entry.text)
        body = self._output_body(task, now_ms, run_s)
        if body is not None:
            return Answer(*place, Status.OK, body)
        failure = task.error
        assert failure is not None
        ending = Ending.of(task.envelope, failure.code)
        if ending is Ending.AGAIN:
            return GiveBack(*place, policy_of(task.envelope).delay_ms(task.envelope.attempt))
        status = Status.EXPIRED if failure.code == FailureCode.EXPIRED else ending.status
        body = pack_failure(failure.code, failure.message, hint=failure.hint, retryable=failure.retryable)
        return Answer(*place, status, body)

    def _output_body(self, task: _Task, now_ms: int, run_s: float) -> bytes | None:
        """The packed output, or None if there is none; then `task.error` says why."""
        if task.error is None:
            try:
                body = pack_answer(
                    task.output,
                    input_tokens=task.item.tokens if task.item else 0,
                    queued_ms=float(max(0, now_ms - task.envelope.submitted_ms)),
                    run_ms=run_s * 1000,
                    variant=self.engine.info.variant,
                )
            except DecodeError as error:
                task.error = ItemError(FailureCode.ENGINE_FAILED, f"the engine's output {error.reason}")
            else:
                if len(body) <= MAX_PAYLOAD_BYTES:
                    return body
                task.error = ItemError(
                    FailureCode.OUTPUT_TOO_LARGE, f"{len(body):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}"
                )
        return None

    async def close(self) -> None:
        """Finish what computes, then let go of threads and connections."""
        self._preparing.shutdown()
        self._computing.shutdown()
        await self._redis.aclose()


def _in_time(tasks: Sequence[_Task], now_ms: float) -> list[_Task]:
    """The jobs that can run and whose deadlines have not passed; the others of them expire."""
    for task in tasks:
        if task.item is not None and 0 < task.envelope.deadline_ms <= now_ms:
            task.item, task.error = None, _expired()
    return [task for task in tasks if task.item is not None]


def _failed(error: Exception) -> ItemError:
    return ItemError(FailureCode.ENGINE_FAILED, f"{type(error).__name__}: {error}", retryable=True)


def _expired() -> ItemError:
    return ItemError(FailureCode.EXPIRED, "the deadline passed before the job ran", hint="submit with more time")
