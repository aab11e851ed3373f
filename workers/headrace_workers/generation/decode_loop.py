"""The thread that has the engine step, and what happens between two steps: jobs join, leave, and run out of time.

It waits for nothing but work. What a step brought is handed over as it is; who writes it to Redis is none of its
business, and takes none of its time.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Literal, NamedTuple

from headrace.errors import FailureCode
from headrace.telemetry.structured_logs import about, raised_at
from headrace_workers.engines.base import ItemError
from headrace_workers.engines.stepping import StepEngine
from headrace_workers.generation.served_job import ServedJob
from headrace_workers.replicas.batch_jobs import expired, failed

__all__ = ["DecodeLoop", "Happening"]

log = logging.getLogger("headrace.replica")

_CANCELLED: Final = ItemError(FailureCode.CANCELLED, "the job was cancelled")
_SWEEP_AT: Final = 64
"""How many deadlines of jobs that ended may stay behind at least."""
_TOO_LATE: Final = "the deadline passed before the answer was complete"


Reason = Literal["cancelled", "deadline"]
"""Why a job ends before its time."""


class Happening(NamedTuple):
    """What a step, or something between two steps, brought for a job."""

    job: ServedJob
    chunk: dict[str, Any] | None
    """Tokens of one choice, of a job that is streamed."""
    ended: bool


class DecodeLoop:
    """Drives one engine. `start`, `cancel` and `drop` may be called from any thread, and act before the next step.

    Args:
        engine: used on this loop's thread alone, but for `prepare`.
        now_s: the time on the server.
        happened: gets what happened, and the jobs that a step computed for the first time; on this thread.
        broke: gets what the engine raised; no job runs any more then.
    """

    def __init__(
        self,
        engine: StepEngine,
        *,
        now_s: Callable[[], float],
        happened: Callable[[list[Happening], list[ServedJob]], None],
        broke: Callable[[Exception], None],
    ) -> None:
        self._engine = engine
        self._now_s = now_s
        self._happened = happened
        self._broke = broke
        self._wishes: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._jobs: dict[Any, ServedJob] = {}
        self._deadlines: list[tuple[float, int, ServedJob]] = []
        self._ages = count()
        self._fresh: list[ServedJob] = []
        self._news: list[Happening] = []
        self._closed = False
        self.rounds = 0
        """How often it has gone round: a loop that hangs in a step goes round no more."""
        self.idle = True
        """Whether it waits for work."""
        self._thread = Thread(target=self._run, name="headrace-decode", daemon=True)
        self._thread.start()

    def start(self, job: ServedJob) -> None:
        """Run a prepared job behind what was delivered of it."""
        self._wishes.put(partial(self._start, job))

    def cancel(self, job: ServedJob) -> None:
        """End a job as cancelled, unless it has ended."""
        job.cancelled = True
        self._wishes.put(partial(self._give_up, job, "cancelled"))

    def drop(self, job: ServedJob) -> None:
        """Forget a job: it is somebody else's now."""
        job.dropped = True
        self._wishes.put(partial(self._drop, job))

    def drop_all(self) -> None:
        """Forget every job."""
        self._wishes.put(self._drop_all)

    def close(self) -> None:
        """End after the step that runs, and wait for that."""
        self._wishes.put(self._end)
        self._thread.join()

    # -- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            try:
                self._obey()
                self._expire()
                if self._engine.busy:
                    self._step()
                self._hand_over()
            except Exception as error:
                log.exception("the engine failed; %d jobs are given up here", len(self._jobs))
                self._drop_all()
                self._broke(error)
            self.rounds += 1

    def _obey(self) -> None:
        """Do what was wished for; while there is nothing to compute, wait for a wish."""
        if not self._engine.busy:
            self.idle = True
            self._wishes.get()()
            self.idle = False
        with suppress(Empty):
            while True:
                self._wishes.get_nowait()()

    def _step(self) -> None:
        for event in self._engine.step():
            job = self._jobs.get(event.generation)
            if job is None:  # dropped within this very step
                continue
            if event.chunk is not None:
                job.first_token_s = job.first_token_s or self._now_s()
            if event.chunk is not None and job.streams:
                self._news.append(Happening(job, event.chunk, ended=False))
            if event.ended:
                self._ended(job, event.generation.error)

    def _hand_over(self) -> None:
        if self._news or self._fresh:
            news, self._news = self._news, []
            fresh, self._fresh = self._fresh, []
            self._happened(news, fresh)

    def _start(self, job: ServedJob) -> None:
        if job.dropped:
            return
        job.started_s = self._now_s()
        if job.cancelled:
            self._called_off(job, "cancelled")
        elif 0 < job.envelope.deadline_ms <= job.started_s * 1000:
            self._called_off(job, "deadline")
        else:
            self._begin(job)

    def _called_off(self, job: ServedJob, reason: Reason) -> None:
        """It ended before it began here; what others delivered of it is kept."""
        job.output = job.delivered_output(reason)
        self._ended(job, _CANCELLED if reason == "cancelled" else expired())

    def _begin(self, job: ServedJob) -> None:
        assert job.item is not None
        try:
            delivered = [chunk.body for chunk in job.delivered]
            generation = self._engine.start(job.item, job_id=job.envelope.job_id, delivered=delivered)
        except ItemError as error:
            self._ended(job, error)
            return
        except Exception as error:
            known = about(model=job.model, job_id=job.envelope.job_id, traceparent=job.envelope.traceparent)
            log.error("job %s could not be started: %s", job.envelope.job_id, raised_at(error), extra=known)
            self._ended(job, failed(error))
            return
        job.generation = generation
        self._jobs[generation] = job
        self._fresh.append(job)
        if generation.ended:
            self._ended(job, generation.error)
        elif job.envelope.deadline_ms:
            self._sweep_deadlines()
            heapq.heappush(self._deadlines, (job.envelope.deadline_ms / 1000, next(self._ages), job))

    def _sweep_deadlines(self) -> None:
        """Forget those of jobs that ended, when they are the most of them."""
        if len(self._deadlines) > 2 * len(self._jobs) + _SWEEP_AT:
            self._deadlines = [row for row in self._deadlines if row[2].generation in self._jobs]
            heapq.heapify(self._deadlines)

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._now_s():
            self._give_up(heapq.heappop(self._deadlines)[2], "deadline")

    def _give_up(self, job: ServedJob, reason: Reason) -> None:
        if job.generation not in self._jobs:  # not started, or over
            return
        self._engine.cancel(job.generation, reason)
        self._ended(job, _CANCELLED if reason == "cancelled" else expired(_TOO_LATE))

    def _ended(self, job: ServedJob, error: ItemError | None) -> None:
        generation = job.generation
        job.ended_s, job.error = self._now_s(), error
        if generation is not None:
            del self._jobs[generation]
            job.output = generation.output()
            job.tokens = generation.tokens
        self._news.append(Happening(job, None, ended=True))

    def _drop(self, job: ServedJob) -> None:
        if job.generation in self._jobs:
            self._engine.cancel(job.generation)
            del self._jobs[job.generation]

    def _drop_all(self) -> None:
        for job in list(self._jobs.values()):
            try:
                self._drop(job)
            except Exception:
                log.exception("job %s could not be taken back from the engine", job.envelope.job_id)
        self._jobs.clear()
        self._deadlines.clear()
        self._news.clear()
        self._fresh.clear()

    def _end(self) -> None:
        self._closed = True
