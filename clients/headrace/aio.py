"""The asynchronous client: hand jobs over, get answers back."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial, reduce
from itertools import islice
from types import TracebackType
from typing import Self

from headrace import scripts
from headrace.control import cancel_jobs, job_status
from headrace.errors import ResultTimeoutError
from headrace.inboxes.own_inbox import OwnInbox
from headrace.inboxes.reader import entries_after
from headrace.jobs.submitter import Submitter
from headrace.jobs.window import Window
from headrace.keys import keys_of
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import CancelOutcome, Job, Receipt
from headrace.messages.result import JobStatus, Result
from headrace.models.registry import registered_models
from headrace.models.shards import Shards
from headrace.scripts import Audit
from headrace.server.connection import BLOCK_MS, execute, redacted, translated
from headrace.settings import ClientSettings
from headrace.streaming.progress import entry_id_of
from headrace.streaming.stream import AsyncStream
from headrace.telemetry.tracing import received

__all__ = ["AsyncClient"]


class AsyncClient:
    """A producer and consumer of jobs. One per process is enough: all waiters share its readers.

    Use it as an asynchronous context manager, or call `aclose`.

    Args:
        url: the Redis server; None asks the environment (`headrace.server.connection.resolve_url`).
        settings: time-outs, when a job counts as handed over, certificates, and whether answers stay.

    Every call may raise `RedisUnavailableError`, `RedisFullError` or `RedisSetupError`. Repeating the call
    is safe then: a job is known by its id, and no id is run twice.
    """

    def __init__(self, url: str | None = None, *, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings()
        self.url = self.settings.url_of(url)
        self._redis = self.settings.connect(self.url)
        self._shards = Shards(self._redis)
        self.own_inbox = OwnInbox(self._redis, self.url, keep_results=self.settings.keep_results)
        """What streams and `map` wait through; not for producers."""
        self._submitter = Submitter(self._redis, self._shards, self.own_inbox)

    @property
    def inbox(self) -> str:
        """Where the answers of this client's jobs go, unless a job names another inbox."""
        return self.own_inbox.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self.url)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading, delete what was consumed and close the connections. Jobs go on.

        Whoever still waits for an answer is told by a `RuntimeError`.
        """
        await self.own_inbox.close()
        await self._redis.aclose()

    # -- handing over ---------------------------------------------------------------------------------

    async def submit(self, job: Job) -> Receipt:
        """Hand one job over. When this returns, the job is Redis's to keep and the service's to finish.

        Raises:
            InvalidJobError: it is too large, or not Unicode.
            UnknownModelError, QueueFullError, TenantQueueFullError: it was refused.
        """
        return (await self.submit_many([job]))[0]

    async def submit_many(self, jobs: Iterable[Job]) -> list[Receipt]:
        """Hand jobs over, many with each call to the server; receipts come in the order of the jobs.

        Raises:
            InvalidJobError: one of them is; none was sent.
            SubmitRefusedError: of the kind of the first refusal, after all others were handed over;
                its `receipts` tells the fate of each job.
        """
        receipts = await self._submitter.hand_over(list(jobs))
        await self._submitter.raise_refusals(receipts)
        return receipts

    async def submit_patiently(self, jobs: Sequence[Job]) -> list[Receipt]:
        """As `submit_many`, but wait, with jitter, for as long as lanes or tenants are full.

        Raises:
            InvalidJobError, UnknownModelError.
        """
        return await self._submitter.hand_over_patiently(jobs)

    # -- waiting for answers ----------------------------------------------------------------------------

    async def run(self, job: Job, *, timeout_s: float | None = None) -> Result:
        """Hand a job over and wait for its answer. Raises what `submit` and `result` raise."""
        return await self.result(await self.submit(job), timeout_s=timeout_s)

    async def result(self, job: Receipt | str, *, model: str | None = None, timeout_s: float | None = None) -> Result:
        """The terminal entry of a job, given by its receipt, or by its id with `model`; `unwrap` it.

        What this client submitted to its own inbox is waited for without polling; for other jobs their
        record is asked now and then.

        Raises:
            ResultTimeoutError: not within `timeout_s`. The job goes on; ask again.
            ResultGoneError: the answer was consumed or its retention is over, or there is no such job.
            WireError: the answer cannot be understood.
            TypeError: an id without `model`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                model, job = await self._named(job, model)
                entry = await self.own_inbox.entry(model, job)
        except TimeoutError:
            raise ResultTimeoutError(f"job {job} of {model} has no answer after {timeout_s} s") from None
        result = entry.to_result(model)
        received(result)
        self.own_inbox.consumed(model, entry)
        return result

    def stream(
        self,
        job: Job | Receipt | str,
        *,
        model: str | None = None,
        after: str = "0",
        timeout_s: float | None = None,
    ) -> AsyncStream:
        """The text of a job as it is generated; `AsyncStream` tells how to read it.

        A `Job` is handed over, with `stream` among its parameters unless it says otherwise. One that was submitted
        before, by any process, is given by its receipt, or by its id with `model`. Several may watch one job.

        Args:
            job: which.
            model: of which model, for an id.
            after: a `Chunk.cursor`, behind which to go on; "0" is all that is kept.
            timeout_s: how long to wait for each chunk; `ResultTimeoutError` then, and the job goes on.

        Raises:
            ValueError: `after` is no cursor.
        """
        self.own_inbox.require_open()
        return AsyncStream(self, self._redis, self._shards, job, model=model, after=after, timeout_s=timeout_s)

    async def map(self, jobs: Iterable[Job], *, in_flight: int = 1024, ordered: bool = True) -> AsyncGenerator[Result]:
        """Run jobs, at most `in_flight` at a time, and yield their results; full lanes are waited out.

        Args:
            jobs: taken from as room allows; each must go to this client's own inbox.
            in_flight: how many may be handed over and not yet yielded.
            ordered: yield in the order of the jobs, or as answers come.

        Raises:
            InvalidJobError, UnknownModelError: of a job; those that were handed over before it go on.
            WireError: an answer cannot be understood.
            ValueError: `in_flight` is less than one.
        """
        window, source = Window(self, in_flight=in_flight, ordered=ordered), iter(jobs)
        exhausted = False
        while True:
            if not exhausted and window.wants_more:
                chunk = list(islice(source, min(window.room, scripts.MAX_JOBS)))
                exhausted = not chunk
                await window.put(chunk)
            if exhausted or not window.wants_more:
                if not (results := await window.take()):
                    return
                for result in results:
                    yield result

    async def results(
        self, inbox: str, *, model: str, after: str = "0", idle_s: float | None = None
    ) -> AsyncGenerator[Result]:
        """Consume an inbox that jobs name in their `inbox`: every terminal entry behind the cursor `after`.

        Persist `Result.cursor` with what you did of it, and go on from there after a crash: nothing is
        skipped, nothing repeated. Entries stay until the service's retention is over, or `trim` deletes them.
        An outage of Redis is waited out, at the beginning as well.

        Args:
            inbox: its name; one consumer reads it.
            model: of which model's jobs.
            after: a `Result.cursor`; "0" is the oldest that is kept, "$" only what comes from now on.
            idle_s: stop after this long without news; None never stops.

        Raises:
            ShardedModelError: the model has several shards, each with inboxes of its own: name one of them.
            RedisSetupError: it cannot be read with these credentials, or not from this kind of server.
            WireError: an entry cannot be understood.
        """
        last_news = time.monotonic()
        block_ms = BLOCK_MS if idle_s is None else max(1, min(BLOCK_MS, int(idle_s * 1000)))
        check = partial(self._shards.require_one, model)
        entries_of_reads = entries_after(self.url, model, inbox, entry_id_of(after), block_ms=block_ms, check=check)
        try:
            async for entries in entries_of_reads:
                for entry_id, fields in entries:
                    entry = InboxEntry.parse(inbox, entry_id, fields)
                    if entry.status != "chunk":
                        result = entry.to_result(model)
                        received(result)
                        yield result
                if entries:
                    last_news = time.monotonic()
                elif idle_s is not None and time.monotonic() - last_news >= idle_s:
                    return
        finally:
            await entries_of_reads.aclose()

    async def trim(self, inbox: str, *, model: str, through: str) -> int:
        """Delete the entries of an inbox up to the cursor `through`, that one included. Returns how many.

        Raises:
            ShardedModelError: the model has several shards, each with inboxes of its own: name one of them.
        """
        await self._shards.require_one(model)
        milliseconds, _, sequence = entry_id_of(through).partition("-")
        async with translated("trimming an inbox"):
            return int(
                await self._redis.xtrim(
                    keys_of(model).inbox(inbox),
                    minid=f"{milliseconds}-{int(sequence or 0) + 1}",
                    approximate=False,
                )
            )

    # -- asking -----------------------------------------------------------------------------------------

    async def status(self, job: Receipt | str, *, model: str | None = None) -> JobStatus:
        """Where a job is.

        Raises:
            ResultGoneError: no record of it: never submitted, or its retention is over.
        """
        return await job_status(self._redis, *await self._named(job, model))

    async def _named(self, job: Receipt | str, model: str | None) -> tuple[str, str]:
        """Shard and id of a job that is given by its receipt, or by its id and `model=`."""
        if isinstance(job, Receipt):
            return job.model, job.id
        if model is None:
            raise TypeError("a job given by its id needs model=")
        self.own_inbox.require_open()
        return await self._shards.name(model, job), job

    async def cancel(self, job: Receipt | str, *, model: str | None = None) -> CancelOutcome:
        """Stop a job that has not ended. Whatever the outcome, the job has exactly one terminal entry.

        A request outlives the routers; a job that computes when it comes may still be answered. Nothing is raised of a
        job that is not known: that is an outcome, too.
        """
        name, job_id = await self._named(job, model)
        [outcome] = await cancel_jobs(self._redis, name, [job_id])
        return outcome

    async def cancel_many(self, jobs: Iterable[str], *, model: str) -> list[CancelOutcome]:
        """As `cancel`, for many jobs of one model, by their ids."""
        job_ids, outcomes = list(jobs), dict[str, CancelOutcome]()
        for name, some in (await self._shards.sorted(model, job_ids)).items():
            outcomes |= zip(some, await cancel_jobs(self._redis, name, some), strict=True)
        return [outcomes[job_id] for job_id in job_ids]

    async def audit(self, model: str) -> Audit:
        """How many of a model's jobs were submitted, ended and live, counted at one moment for each of its shards."""
        audits = [await scripts.audit(self._redis, name) for name in await self._shards.names(model)]
        return reduce(operator.add, audits)

    async def models(self) -> Sequence[str]:
        """The models that services have registered, each shard by its own name."""
        return await registered_models(self._redis)

    async def shards(self, model: str) -> Sequence[str]:
        """The names under which a model's jobs lie: `m#0` and on, or its own."""
        return await self._shards.names(model)

    async def ping(self) -> None:
        """Raise unless Redis answers."""
        async with translated(f"reaching Redis at {redacted(self.url)}"):
            await execute(self._redis, "PING")
