"""A replica that generates: batches of jobs in, tokens and answers written to Redis, fates out as jobs end.

Three places work beside each other: one thread prepares jobs, another has the engine step, and the event loop writes
what the steps brought. A job belongs to whoever started it last: that is how a stream goes on when its replica or its
router died, and why a replica that was merely slow writes nothing more of it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from headrace.errors import DecodeError, FailureCode
from headrace.messages import Batch, Fate, JobOutcomes, unpack_chunk
from headrace.scripts import Begun, ChunkOutcome, Started, StartOutcome, new_owner
from headrace.server.connection import commands
from headrace.serving.answers import begin_jobs
from headrace.tasks import end_task
from headrace_workers.engines.base import ItemError
from headrace_workers.engines.stepping import StepEngine
from headrace_workers.generation.batch_call import BatchCall
from headrace_workers.generation.cancels import CancelReader
from headrace_workers.generation.decode_loop import DecodeLoop, Happening
from headrace_workers.generation.decode_loops import DecodeLoops
from headrace_workers.generation.outbox import Outbox
from headrace_workers.generation.served_job import ServedJob
from headrace_workers.replicas.batch_jobs import prepare_jobs
from headrace_workers.replicas.engine_shelf import EngineShelf
from headrace_workers.replicas.heard_clock import HeardClock
from headrace_workers.replicas.turns import Turns
from headrace_workers.replicas.watch import BatchTimes, ReplicaWatch

__all__ = ["DecoderReplica"]

log = logging.getLogger("headrace.replica")

_SWITCH_S: Final = 0.0005
"""How long the event loop may keep the interpreter from the decode thread, which comes out of a step every few
milliseconds and has all cores wait for it: Python's own 5 ms are a quarter of a step."""


class DecoderReplica:
    """Hosts one engine that generates, for the jobs of one model, whichever of its shards they are in.

    Args:
        model: the name under which producers know it.
        engine: runs the jobs.
        redis_url: where chunks and answers go.
        watch: records what happens here.
    """

    def __init__(self, model: str, engine: StepEngine, *, redis_url: str, watch: ReplicaWatch | None = None) -> None:
        self.model = model
        self._loops = DecodeLoops(self._begin_loop)
        self.engines = EngineShelf(engine, left=self._loops.left)
        self.watch = watch or ReplicaWatch()
        self._url = redis_url
        self._redis = commands(redis_url)
        self._clock = HeardClock()
        self._turns = Turns()
        self._jobs: dict[tuple[str, str], ServedJob] = {}
        self._calls: dict[BatchCall, StepEngine] = {}
        self._cancels: dict[str, CancelReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox = Outbox(self._redis, refused=self._refused, cancelled=self._cancel, ended=self._ended)
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="headrace-prepare")
        sys.setswitchinterval(_SWITCH_S)

    @property
    def engine(self) -> StepEngine:
        """The engine that new jobs join."""
        return self.engines.engine

    def _now_s(self) -> float:
        return self._clock.now_s(time.monotonic())

    async def stream(self, message: bytes) -> AsyncGenerator[bytes]:
        """Run the jobs of a packed `Batch`; packed `JobOutcomes` as they end, and now and then as a sign of life.

        Jobs go on when nobody listens any more: whoever gets them next takes them over by starting them.

        Raises:
            DecodeError: the message is no batch.
        """
        batch = Batch.from_bytes(message)
        now_s = time.monotonic()
        self._clock.hear(batch.now_ms / 1000, now_s)
        size = len(batch.entries)
        if not self._turns.enter(now_s, alone=batch.alone):
            yield JobOutcomes(list(range(size)), [Fate.RETURNED] * size, [0] * size, computed=False).to_bytes()
            return
        try:
            engine, loop = await self._engine_in_place()
        except BaseException:
            self._turns.leave()
            raise
        call = self._new_call(size, engine, loop)
        self._spawn(self._begin(batch, call, engine, loop), lambda error: self._give_up(call, error))
        async with aclosing(call.messages()) as messages:
            async for outcomes in messages:
                yield outcomes

    async def _engine_in_place(self) -> tuple[StepEngine, DecodeLoop]:
        """What new jobs join; it is given back when their call is over."""
        engine = await self.engines.take()
        try:
            return engine, await self._loops.of(engine)
        except BaseException:
            self.engines.give(engine)
            raise

    def _begin_loop(self, engine: StepEngine) -> DecodeLoop:
        return DecodeLoop(engine, now_s=self._now_s, happened=self._happened, broke=partial(self._broke, engine))

    def _new_call(self, size: int, engine: StepEngine, loop: DecodeLoop) -> BatchCall:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._write()
        rounds = -1

        def alive() -> bool:
            nonlocal rounds
            before, rounds = rounds, loop.rounds
            return loop.idle or rounds != before

        def over() -> None:
            del self._calls[call]
            self._turns.leave()
            self.engines.give(engine)

        call = BatchCall(size, alive=alive, over=over)
        self._calls[call] = engine
        return call

    def _write(self) -> None:
        """Have the outbox write; one that failed had jobs that are given up, and goes on for others."""

        def failed(error: BaseException) -> None:
            self._fail_all(error)
            self._write()

        self._spawn(self._outbox.run(), failed)

    # -- beginning ------------------------------------------------------------------------------------------

    async def _begin(self, batch: Batch, call: BatchCall, engine: StepEngine, loop: DecodeLoop) -> None:
        """Prepare the jobs of a batch and have them join the others."""
        running = asyncio.get_running_loop()
        jobs = await running.run_in_executor(self._preparing, self._prepare, batch, call, engine, loop)
        for job in jobs:
            if job.error is not None:
                job.started_s = job.ended_s = self._now_s()
                self._outbox.end(job)
        ready = [job for job in jobs if job.error is None]
        if not ready:
            return
        await self._follow_cancels(batch.model)
        ready = [job for job in ready if self._take_in(job)]
        if not ready:
            return
        begun = [Begun(job.entry.lane, job.entry.entry_id, job.envelope.job_id, job.streams) for job in ready]
        for job, started in zip(ready, await begin_jobs(self._redis, batch.model, ready[0].owner, begun), strict=True):
            self._join(job, started)

    def _take_in(self, job: ServedJob) -> bool:
        """Have a job for one's own. Of two calls with the same job the later dispatch has it, whichever came first: the
        router of the earlier may have hung up, and nobody would hear what became of it.
        """
        other = self._jobs.get(job.key)
        if other is not None and other.dispatched_ms > job.dispatched_ms:
            self._let_go(job, Fate.LATE)
            return False
        if other is not None:
            self._let_go(other, Fate.LATE)
        self._jobs[job.key] = job
        return True

    def _prepare(self, batch: Batch, call: BatchCall, engine: StepEngine, loop: DecodeLoop) -> list[ServedJob]:
        owner = new_owner(batch.now_ms)
        jobs = []
        for number, (entry, item) in enumerate(zip(batch.entries, prepare_jobs(engine, batch.entries), strict=True)):
            job = ServedJob(call, number, batch.model, entry, entry.envelope, owner, loop, engine.info.variant)
            if isinstance(item, ItemError):
                job.error = item
            else:
                job.item = item
            jobs.append(job)
        return jobs

    def _join(self, job: ServedJob, started: Started) -> None:
        if job.dropped:
            return
        if started.outcome is StartOutcome.NOT_YOURS:
            self._let_go(job, Fate.LATE)
            return
        job.cancelled |= started.outcome is StartOutcome.CANCELLING
        try:
            job.delivered = [unpack_chunk(body) for body in started.chunks]
        except DecodeError as error:
            message = f"a chunk that was delivered before cannot be read: {error.reason}"
            job.error = ItemError(FailureCode.ENGINE_FAILED, message)
            self._outbox.end(job)
            return
        job.written = len(job.delivered)
        job.loop.start(job)

    async def _follow_cancels(self, model: str) -> None:
        reader = self._cancels.get(model)
        if reader is None:
            reader = CancelReader(self._url, model, lambda job_id: self._cancel_named(model, job_id))
            self._cancels[model] = reader
            self._spawn(reader.run(), self._fail_all)
        await reader.ready()

    # -- while they run ---------------------------------------------------------------------------------------

    def _happened(self, news: list[Happening], fresh: list[ServedJob]) -> None:
        """On the decode thread: what a step brought goes over to the event loop."""
        self._call_over(self._take, news, fresh)

    def _broke(self, engine: StepEngine, error: Exception) -> None:
        self._call_over(self._fail_all, error, engine)

    def _call_over(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _take(self, news: Sequence[Happening], fresh: Sequence[ServedJob]) -> None:
        for job in fresh:
            job.call.computed()
        for job, chunk, ended in news:
            if chunk is not None:
                self._outbox.add(job, chunk)
            if ended and not job.dropped:
                self._outbox.end(job)

    def _cancel_named(self, model: str, job_id: str) -> None:
        if (job := self._jobs.get((model, job_id))) is not None:
            self._cancel(job)

    def _cancel(self, job: ServedJob) -> None:
        if not job.cancelled:
            job.loop.cancel(job)

    def _refused(self, job: ServedJob, outcome: ChunkOutcome) -> None:
        """Somebody else runs it; or the server came back without its stream, and it is to be started anew."""
        self._let_go(job, Fate.RETURNED if outcome is ChunkOutcome.LOST else Fate.LATE)

    # -- when they end ----------------------------------------------------------------------------------------

    def _ended(self, job: ServedJob, fate: Fate) -> None:
        self._forget(job)
        if fate is Fate.ANSWERED and job.started_s:
            self._note(job)
        job.call.ended(job.number, fate, job.tokens)

    def _note(self, job: ServedJob) -> None:
        prompt = job.item.tokens if job.item else 0
        self.watch.generated(
            job.model,
            job.envelope,
            times=BatchTimes(job.started_s, job.started_s, job.ended_s, self._now_s()),
            first_token_s=job.first_token_s,
            tokens=job.tokens - prompt,
            variant=job.variant,
        )

    def say_how_busy(self) -> None:
        """Have the gauges of the engine recorded."""
        pool = getattr(self.engine, "pool", None) if self.engines.in_place else None
        self.watch.generating(self.model, len(self._jobs), pool)

    def _let_go(self, job: ServedJob, fate: Fate) -> None:
        """Run a job no further, and write nothing more of it."""
        job.loop.drop(job)
        self._ended(job, fate)

    def _forget(self, job: ServedJob) -> None:
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    def _give_up(self, call: BatchCall, error: BaseException) -> None:
        """Jobs of a batch cannot be run here: let its router find out which of them is why."""
        for job in [job for job in self._jobs.values() if job.call is call]:
            job.loop.drop(job)
            self._forget(job)
        call.fail(error)

    def _fail_all(self, error: BaseException, engine: StepEngine | None = None) -> None:
        """Give up the batches of an engine; None: of all."""
        for call in [call for call, runs_it in self._calls.items() if engine in (None, runs_it)]:
            self._give_up(call, error)

    # -- tasks --------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a fault in a replica of %s", self.model, exc_info=error)
                failed(error)

        task.add_done_callback(done)

    async def close(self) -> None:
        """Stop after the step that runs, and let go of threads and connections. What has not ended others will run."""
        for task in list(self._tasks):
            await end_task(task)
        self._preparing.shutdown()
        await self._loops.close()
        await self._redis.aclose()
