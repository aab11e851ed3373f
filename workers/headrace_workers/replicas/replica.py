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
from typing import Any

from headrace.messages import Batch, BatchOutcome, Envelope, Fate, LaneEntry, Status
from headrace.scripts import Answer, GiveBack
from headrace.server.connection import commands
from headrace.telemetry.structured_logs import about, raised_at
from headrace_workers.engines.base import Engine, ItemError, Prepared
from headrace_workers.replicas.batch_jobs import answer_of, expired, failed, failure_of, prepare_jobs, write_endings
from headrace_workers.replicas.engine_shelf import EngineShelf
from headrace_workers.replicas.heard_clock import HeardClock
from headrace_workers.replicas.turns import Turns
from headrace_workers.replicas.watch import BatchTimes, ReplicaWatch

__all__ = ["Replica"]

log = logging.getLogger("headrace.replica")


@dataclass(slots=True)
class _Task:
    """One job on its way through the replica: in the end it has an output or an error."""

    entry: LaneEntry
    envelope: Envelope
    item: Prepared | None = None
    output: Any = None
    error: ItemError | None = None


class Replica:
    """Hosts one engine and answers the jobs of one model, whichever of its shards they are in.

    Args:
        model: the name under which producers know it.
        engine: runs the jobs.
        redis_url: where answers go.
        watch: records what happens here.
        computing: the thread of a process that hosts other models as well, which computes for all of them.
    """

    def __init__(
        self,
        model: str,
        engine: Engine,
        *,
        redis_url: str,
        watch: ReplicaWatch | None = None,
        computing: ThreadPoolExecutor | None = None,
    ) -> None:
        self.model = model
        self.watch = watch or ReplicaWatch()
        self.engines = EngineShelf(engine)
        self._redis = commands(redis_url)
        self._clock = HeardClock()
        self._turns = Turns()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="headrace-prepare")
        self._computing = computing or ThreadPoolExecutor(1, thread_name_prefix="headrace-compute")
        self._computes_for_others = computing is not None

    @property
    def engine(self) -> Engine:
        """The engine that takes new batches."""
        return self.engines.engine

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
            engine = await self.engines.take()
            try:
                return (await self._run(batch, engine)).to_bytes()
            finally:
                self.engines.give(engine)
        finally:
            self._turns.leave()

    async def _run(self, batch: Batch, engine: Engine) -> BatchOutcome:
        loop, came_s = asyncio.get_running_loop(), self._now_s()
        tasks = await loop.run_in_executor(self._preparing, self._prepare, batch, engine)
        run_s = await loop.run_in_executor(self._computing, self._compute, tasks, engine)
        run_to_s = self._now_s()
        answers = await loop.run_in_executor(self._preparing, self._answers, batch, tasks, run_s, engine.info.variant)
        fates = await write_endings(self._redis, batch.model, answers)
        times = BatchTimes(came_s, run_to_s - run_s, run_to_s, self._now_s())
        self.watch.answered(batch.model, [task.envelope for task in tasks], times, engine.info.variant)
        return BatchOutcome(fates, tokens=[task.item.tokens if task.item else 0 for task in tasks], run_s=run_s)

    def _now_s(self) -> float:
        return self._clock.now_s(time.monotonic())

    # -- preparing --------------------------------------------------------------------------------------

    def _prepare(self, batch: Batch, engine: Engine) -> list[_Task]:
        items = prepare_jobs(engine, batch.entries)
        return [
            _Task(entry, entry.envelope, error=item)
            if isinstance(item, ItemError)
            else _Task(entry, entry.envelope, item)
            for entry, item in zip(batch.entries, items, strict=True)
        ]

    # -- computing --------------------------------------------------------------------------------------

    def _compute(self, tasks: Sequence[_Task], engine: Engine) -> float:
        """Run what can be run; returns the seconds it took."""
        started_s = time.monotonic()
        self._run_engine(tasks, engine)
        return time.monotonic() - started_s

    def _run_engine(self, tasks: Sequence[_Task], engine: Engine) -> None:
        """Run jobs together, or one by one if that fails."""
        tasks = _in_time(tasks, self._now_s() * 1000)
        if not tasks:
            return
        try:
            outputs = engine.run([task.item for task in tasks if task.item is not None])
            if len(outputs) != len(tasks):
                raise RuntimeError(f"the engine gave {len(outputs)} outputs for {len(tasks)} jobs")
        except Exception as error:
            if len(tasks) > 1:
                log.warning(
                    "a batch of %d failed (%s); its jobs run one by one",
                    len(tasks),
                    raised_at(error),
                    extra=about(model=self.model, batch_jobs=len(tasks)),
                )
                for task in tasks:
                    self._run_engine([task], engine)
                return
            alone = tasks[0].envelope
            known = about(model=self.model, job_id=alone.job_id, traceparent=alone.traceparent)
            log.error("job %s failed alone: %s", alone.job_id, raised_at(error), extra=known)
            outputs = [failed(error)]
        for task, output in zip(tasks, outputs, strict=True):
            if isinstance(output, ItemError):
                task.error = output
            else:
                task.output = output

    # -- answering --------------------------------------------------------------------------------------

    def _answers(self, batch: Batch, tasks: Sequence[_Task], run_s: float, variant: str) -> list[Answer | GiveBack]:
        return [self._answer(task, batch.now_ms, run_s, variant) for task in tasks]

    def _answer(self, task: _Task, now_ms: int, run_s: float, variant: str) -> Answer | GiveBack:
        entry = task.entry
        body = task.error or answer_of(
            task.output,
            input_tokens=task.item.tokens if task.item else 0,
            queued_ms=float(max(0, now_ms - task.envelope.submitted_ms)),
            run_ms=run_s * 1000,
            variant=variant,
        )
        if isinstance(body, ItemError):
            return failure_of(entry, task.envelope, body)
        return Answer(entry.lane, entry.entry_id, entry.text, Status.OK, body)

    async def close(self) -> None:
        """Finish what computes, then let go of threads and connections."""
        self._preparing.shutdown()
        if not self._computes_for_others:
            self._computing.shutdown()
        await self._redis.aclose()


def _in_time(tasks: Sequence[_Task], now_ms: float) -> list[_Task]:
    """The jobs that can run and whose deadlines have not passed; the others of them expire."""
    for task in tasks:
        if task.item is not None and 0 < task.envelope.deadline_ms <= now_ms:
            task.item, task.error = None, expired()
    return [task for task in tasks if task.item is not None]
