"""The asynchronous client: hand jobs over, get answers back."""

from __future__ import annotations

import asyncio
import operator
import random
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

from headrace import scripts
from headrace.connection import BLOCK_MS, execute, redacted, translated
from headrace.control import cancel_jobs, job_status
from headrace.errors import (
    ResultGoneError,
    ResultTimeoutError,
)
from headrace.ids import new_inbox, new_token
from headrace.inbox import Deliver, Demultiplexer
from headrace.keys import keys_of
from headrace.lookup import delete_entries
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import PRIORITIES, CancelOutcome, Job, Priority, Receipt, SubmitOutcome
from headrace.messages.payload import pack_payload
from headrace.messages.result import JobStatus, Result
from headrace.reader import InboxReader, entries_after
from headrace.refusal import raise_refusals, room_after_s
from headrace.registry import registered_models
from headrace.scripts import Audit
from headrace.settings import ClientSettings
from headrace.shards import Shards, shard_of
from headrace.stream import AsyncStream
from headrace.stream_progress import entry_id_of
from headrace.tasks import settle
from headrace.window import Window

__all__ = ["AsyncClient"]

_LONGEST_PAUSE_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_POLL_S: Final = 0.5
_FORGET_AT: Final = 256
_FORGET_AFTER_S: Final = 0.25

_Call = tuple[str, Priority, str, str, str]
"""What the jobs of one SUBMIT call have in common: model, priority, inbox, tenant, retry policy."""


class AsyncClient:
    """A producer and consumer of jobs. One per process is enough: all waiters share its readers.

    Use it as an asynchronous context manager, or call `aclose`.

    Args:
        url: the Redis server; None asks the environment (`headrace.connection.resolve_url`).
        settings: time-outs and retention.

    Every call may raise `RedisUnavailableError`, `RedisFullError` or `RedisSetupError`. Repeating the call
    is safe then: a job is known by its id, and no id is run twice.
    """

    def __init__(self, url: str | None = None, *, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings()
        self.url = self.settings.url_of(url)
        self.inbox = new_inbox()
        self._redis = self.settings.connect(self.url)
        self._shards = Shards(self._redis)
        self._readers: dict[str, InboxReader] = {}
        self._answers: dict[str, Demultiplexer] = {}
        self._consumed: dict[str, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetter: asyncio.TimerHandle | None = None
        self._closed = False

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
        self._closed = True
        for reader in self._readers.values():
            await reader.close()
        self._readers.clear()
        for demultiplexer in self._answers.values():
            demultiplexer.fail(_closed_error())
        self._forget()
        if self._tasks:
            await asyncio.wait(self._tasks)
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
        receipts = await self._hand_over(list(jobs))
        await self._raise_refusals(receipts)
        return receipts

    async def submit_patiently(self, jobs: Sequence[Job]) -> list[Receipt]:
        """As `submit_many`, but wait, with jitter, for as long as lanes or tenants are full.

        Raises:
            InvalidJobError, UnknownModelError.
        """
        receipts = await self._hand_over(jobs)
        pause_s, before = _FIRST_PAUSE_S, 0
        while refused := [n for n, receipt in enumerate(receipts) if not receipt.accepted]:
            raise_refusals(receipts, of=SubmitOutcome.UNKNOWN_MODEL)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s) if len(refused) == before else _FIRST_PAUSE_S
            before = len(refused)
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause_s)
            for n, receipt in zip(refused, await self._hand_over([jobs[n] for n in refused]), strict=True):
                receipts[n] = receipt
        return receipts

    async def _raise_refusals(self, receipts: Sequence[Receipt]) -> None:
        """Raise the error of the first refusal, with how long the service takes to make room."""
        refused = [receipt for receipt in receipts if not receipt.accepted]
        if refused:
            raise_refusals(receipts, retry_after_s=await room_after_s(self._redis, refused[0].model, len(refused)))

    async def _hand_over(self, jobs: Sequence[Job]) -> list[Receipt]:
        """Submit jobs and report the outcome of each, refusals included."""
        self._require_open()
        payloads = [pack_payload(job) for job in jobs]
        receipts: dict[int, Receipt] = {}
        shards = {model: await self._shards.count(model) for model in {job.model for job in jobs}}
        for (model, priority, inbox, tenant, retry), places in self._calls(jobs, shards):
            envelopes = [
                (jobs[n].id, _milliseconds(jobs[n].deadline_s), jobs[n].traceparent or "-", payloads[n]) for n in places
            ]
            opened = self._open(model, [jobs[n].id for n in places]) if inbox == self.inbox else set()
            accepted: set[str] = set()
            try:
                outcomes = await scripts.submit(
                    self._redis,
                    model,
                    envelopes,
                    priority=PRIORITIES.index(priority),
                    token=new_token(),
                    inbox=inbox,
                    tenant=tenant,
                    retry=retry,
                )
                for n, outcome in zip(places, outcomes, strict=True):
                    again = jobs[n].id in accepted  # the script takes that for a replay
                    receipts[n] = Receipt(model, jobs[n].id, inbox, SubmitOutcome.DUPLICATE if again else outcome)
                    if outcome is SubmitOutcome.ACCEPTED:
                        accepted.add(jobs[n].id)
            finally:
                self._withdraw(model, opened - accepted)
        return [receipts[n] for n in range(len(jobs))]

    def _calls(self, jobs: Sequence[Job], shards: Mapping[str, int]) -> Iterable[tuple[_Call, list[int]]]:
        """Places of jobs that may share one script call."""
        groups: dict[_Call, list[int]] = {}
        for place, job in enumerate(jobs):
            retry = job.retry.to_word() if job.retry else "-"
            model = shard_of(job.model, job.id, shards[job.model])
            groups.setdefault((model, job.priority, job.inbox or self.inbox, job.tenant, retry), []).append(place)
        for key, places in groups.items():
            for start in range(0, len(places), scripts.MAX_JOBS):
                yield key, places[start : start + scripts.MAX_JOBS]

    def _open(self, model: str, job_ids: Iterable[str]) -> set[str]:
        """Expect answers, before the jobs can be answered; returns those that were not expected before."""
        demultiplexer = self.demultiplexer(model)
        return {job_id for job_id in job_ids if demultiplexer.open(job_id)}

    def _withdraw(self, model: str, job_ids: Iterable[str]) -> None:
        """Expect these answers no more; who began to wait for one meanwhile is served from the job's record."""
        for job_id in job_ids:
            for deliver in self._answers[model].withdraw(job_id):
                self._spawn(self._fetch_for(model, job_id, deliver))

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
        """
        try:
            async with asyncio.timeout(timeout_s):
                model, job = await self._named(job, model)
                entry = await self._own_entry(model, job) or await self._recorded_entry(model, job)
        except TimeoutError:
            raise ResultTimeoutError(f"job {job} of {model} has no answer after {timeout_s} s") from None
        result = entry.to_result(model)
        self.consumed(model, entry)
        return result

    async def _own_entry(self, model: str, job_id: str) -> InboxEntry | None:
        """The terminal entry from this client's own inbox, or None if none is pending there."""
        demultiplexer = self.demultiplexer(model)
        if (entry_id := demultiplexer.take_arrived(job_id)) is not None:
            return await self._fetch(model, job_id, self.inbox, entry_id)
        future: asyncio.Future[InboxEntry] = asyncio.get_running_loop().create_future()
        deliver = partial(settle, future)
        if not demultiplexer.wait(job_id, deliver):
            return None
        try:
            return await future
        except asyncio.CancelledError:
            demultiplexer.stop_waiting(job_id, deliver)
            if future.done() and not future.cancelled() and future.exception() is None:
                demultiplexer.remember(job_id, future.result().entry_id)  # it came as we were leaving
            raise

    async def _recorded_entry(self, model: str, job_id: str) -> InboxEntry:
        """The terminal entry of a job that went to another inbox, or that was asked for before."""
        pause_s = 0.02
        while not (status := await self.status(job_id, model=model)).state.ended:
            await asyncio.sleep(pause_s)
            if self._closed:
                raise _closed_error()
            pause_s = min(_LONGEST_POLL_S, 1.5 * pause_s)
        return await self._fetch(model, job_id, status.inbox, status.entry_id)

    async def _fetch(self, model: str, job_id: str, inbox: str, entry_id: str) -> InboxEntry:
        async with translated(f"reading the answer of job {job_id}"):
            entries = await execute(self._redis, "XRANGE", keys_of(model).inbox(inbox), entry_id, entry_id)
        if not entries:
            raise ResultGoneError(
                f"job {job_id} of {model} has ended, but its answer was consumed or its retention is over; "
                "submit with an inbox= of your own, or keep_results, to read an answer more than once"
            )
        return InboxEntry.parse(inbox, *entries[0])

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
        """
        self._require_open()
        return AsyncStream(self, self._redis, self._shards, job, model=model, after=after, timeout_s=timeout_s)

    async def map(self, jobs: Iterable[Job], *, in_flight: int = 1024, ordered: bool = True) -> AsyncGenerator[Result]:
        """Run jobs, at most `in_flight` at a time, and yield their results; full lanes are waited out.

        Args:
            jobs: taken from as room allows; each must go to this client's own inbox.
            in_flight: how many may be handed over and not yet yielded.
            ordered: yield in the order of the jobs, or as answers come.
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

        Args:
            inbox: its name; one consumer reads it.
            model: of which model's jobs.
            after: a `Result.cursor`; "0" is the oldest that is kept, "$" only what comes from now on.
            idle_s: stop after this long without news; None never stops.
        """
        await self._shards.require_one(model)
        last_news = time.monotonic()
        block_ms = BLOCK_MS if idle_s is None else max(1, min(BLOCK_MS, int(idle_s * 1000)))
        entries_of_reads = entries_after(self.url, model, inbox, entry_id_of(after), block_ms=block_ms)
        try:
            async for entries in entries_of_reads:
                for entry_id, fields in entries:
                    entry = InboxEntry.parse(inbox, entry_id, fields)
                    if entry.status != "chunk":
                        yield entry.to_result(model)
                if entries:
                    last_news = time.monotonic()
                elif idle_s is not None and time.monotonic() - last_news >= idle_s:
                    return
        finally:
            await entries_of_reads.aclose()

    async def trim(self, inbox: str, *, model: str, through: str) -> int:
        """Delete the entries of an inbox up to the cursor `through`, that one included. Returns how many."""
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
        self._require_open()
        return await self._shards.name(model, job), job

    async def cancel(self, job: Receipt | str, *, model: str | None = None) -> CancelOutcome:
        """Stop a job that has not ended. Whatever the outcome, the job has exactly one terminal entry.

        A request outlives the routers; a job that computes when it comes may still be answered.
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

    # -- the inbox of this client -----------------------------------------------------------------------

    def deliver_to(self, receipt: Receipt, deliver: Deliver) -> None:
        """Have `deliver` called with the terminal entry of a job of this client's own inbox.

        A job that was answered meanwhile, or that is a duplicate, is fetched from where its answer lies.
        """
        demultiplexer = self.demultiplexer(receipt.model)
        if not demultiplexer.wait(receipt.id, deliver):
            self._spawn(self._fetch_for(receipt.model, receipt.id, deliver))

    async def _fetch_for(self, model: str, job_id: str, deliver: Deliver) -> None:
        try:
            deliver(await self._own_entry(model, job_id) or await self._recorded_entry(model, job_id))
        except Exception as error:
            deliver(error)

    def consumed(self, model: str, entry: InboxEntry, chunk_ids: Sequence[str] = ()) -> None:
        """An answer reached the caller: delete it and its chunks soon, with others, if they are ours to delete."""
        if self.settings.keep_results or entry.inbox != self.inbox:
            return
        entries = self._consumed.setdefault(model, [])
        entries += (*chunk_ids, entry.entry_id)
        if len(entries) >= _FORGET_AT:
            self._forget()
        elif self._forgetter is None:
            self._forgetter = asyncio.get_running_loop().call_later(_FORGET_AFTER_S, self._forget)

    def _forget(self) -> None:
        if self._forgetter is not None:
            self._forgetter.cancel()
            self._forgetter = None
        consumed, self._consumed = self._consumed, {}
        for model, entry_ids in consumed.items():
            self._spawn(delete_entries(self._redis, keys_of(model).inbox(self.inbox), entry_ids))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _require_open(self) -> None:
        if self._closed:
            raise _closed_error()

    def demultiplexer(self, model: str) -> Demultiplexer:
        """The model's demultiplexer, with a live reader to feed it."""
        self._require_open()
        demultiplexer = self._answers.setdefault(model, Demultiplexer())
        reader = self._readers.get(model)
        if reader is None or reader.failed:
            self._readers[model] = InboxReader(self.url, model, self.inbox, demultiplexer)
        return demultiplexer


def _closed_error() -> RuntimeError:
    return RuntimeError("the client is closed; the job goes on, and another client can ask for its answer by its id")


def _milliseconds(deadline_s: float | None) -> int:
    """A deadline as SUBMIT takes it, where 0 is none."""
    return 0 if deadline_s is None else max(1, round(deadline_s * 1000))
