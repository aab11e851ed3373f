"""One run of `headrace batch`, from wherever the last one stopped to the end of the input.

Three things happen at once: lines are read and handed over, a bounded number at a time; answers are read
from the batch's own inbox and written down; and somebody looks after jobs of which nothing is heard.

A job's id is made of the batch's and of its line's place in the input. So a line that is handed over again
is answered as a duplicate and not run again, and an answer tells its line even to a run that never saw it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from headrace import scripts
from headrace.aio import AsyncClient
from headrace.cli.batch_input import BatchInput, JobOptions, LineCode, LineError, RawLine, parse_id, parse_job
from headrace.cli.batch_output import BatchOutput
from headrace.cli.output import CommandError, Exit, describe
from headrace.cli.rendering import TensorFormat, answer_fields, failure_fields, failure_of
from headrace.cli.running import until_one_ends
from headrace.errors import FailureCode, RedisError, RedisFullError, RedisUnavailableError, ResultGoneError, WireError
from headrace.inboxes.lookup import read_entries, read_records, read_stored
from headrace.inboxes.reader import StreamEntry, entries_after
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import Job
from headrace.messages.result import Failure
from headrace.server.backoff import Backoff
from headrace.server.connection import commands

__all__ = ["BatchRun", "RunOptions"]

log = logging.getLogger("headrace.cli")

_CHECKPOINT_EVERY_S: Final = 1.0
_CHECKPOINT_EVERY: Final = 8192
_LOOK_AFTER_S: Final = 5.0
_LONGEST_LOOK_S: Final = 60.0
_RETRY_HINT: Final = "what is done is kept; repeat the command to go on"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a batch is run; none of it changes what the answers are."""

    in_flight: int = 1024
    """Jobs handed over and not yet answered."""
    timeout_s: float = 300.0
    """How long nothing may be heard before the run gives up."""


class _Waiting(NamedTuple):
    """A line that was handed over."""

    custom_id: str
    offset: int


class BatchRun:
    """Finishes every line of the input that is not finished.

    Args:
        client: hands jobs over.
        source: the input, examined.
        output: its files, open.
        job_options: what the jobs share.
        tensors: how tensors are written.
        options: how the batch is run.
        progress: called whenever there is news.
    """

    def __init__(
        self,
        client: AsyncClient,
        source: BatchInput,
        output: BatchOutput,
        *,
        job_options: JobOptions,
        tensors: TensorFormat,
        options: RunOptions,
        progress: Callable[[], None],
    ) -> None:
        self.lines_seen = 0
        self._client = client
        self._redis = commands(client.url)
        self._source = source
        self._output = output
        self._job_options = job_options
        self._tensors = tensors
        self._options = options
        self._progress = progress
        self._chunk = max(1, min(scripts.MAX_JOBS, options.in_flight // 4))
        self._run = output.state.run
        self._cursor = output.state.cursor
        self._waiting: dict[int, _Waiting] = {}
        self._unreadable: dict[str, WireError] = {}
        self._news = asyncio.Event()
        self._last_news_s = self._last_checkpoint_s = time.monotonic()
        self._since_checkpoint = 0

    async def run(self) -> None:
        """Run to the end.

        Raises:
            CommandError: nothing is heard any more, or the input was changed.
            HeadraceError: what cannot be waited out.
        """
        try:
            await self._take_stored()
            await until_one_ends(self._feed(), self._read(), self._watch())
            self._output.checkpoint(self._cursor)
            await self._trim()
            self._output.finish()
        except BaseException:
            with suppress(OSError):
                self._output.checkpoint(self._cursor)
            raise
        finally:
            await self._redis.aclose()

    # -- handing over -------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Hand over every line that is not finished, and return when all are."""
        lines = self._source.lines()
        while chunk := list(islice(lines, self._chunk)):
            self.lines_seen += len(chunk)
            jobs = [job for line in chunk if (job := self._admit(line)) is not None]
            if jobs:
                await self._submit(jobs)
            self._progress()
            await asyncio.sleep(0)
            await self._until(lambda: len(self._waiting) + self._chunk <= self._options.in_flight)
        await self._until(lambda: not self._waiting)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _admit(self, line: RawLine) -> Job | None:
        """The job of a line, expected from now on; None if the line is finished."""
        if line.number in self._output.finished or line.number in self._waiting:
            return None
        custom_id: str | None = None
        try:
            custom_id, fields = parse_id(line)
            if not self._output.custom_ids.add(custom_id):
                raise LineError(LineCode.DUPLICATE_CUSTOM_ID, "an earlier line has this custom_id")
            job = parse_job(fields, self._job_id(line.number, line.offset), self._job_options)
        except LineError as error:
            failure = Failure(code=error.code, message=error.message, hint=error.hint)
            self._output.write_failed(line.number, custom_id, failure_fields(failure))
            return None
        if not self._waiting:
            self._last_news_s = time.monotonic()
        self._waiting[line.number] = _Waiting(custom_id, line.offset)
        return job

    def _job_id(self, number: int, offset: int) -> str:
        return f"{self._run}-{number}-{offset}"

    def _place_of(self, job_id: str) -> tuple[int, int] | None:
        """The number and offset of a job's line; None if it is none of this batch."""
        run, _, place = job_id.partition("-")
        number, _, offset = place.partition("-")
        return (int(number), int(offset)) if run == self._run and number.isdigit() and offset.isdigit() else None

    async def _submit(self, jobs: Sequence[Job]) -> None:
        """Hand jobs over, waiting for as long as Redis cannot take them."""
        backoff = Backoff()
        while True:
            try:
                receipts = await self._client.submit_patiently(jobs)
            except (RedisUnavailableError, RedisFullError) as error:
                log.warning("%s; trying again", error)
                await backoff.pause()
                continue
            break
        known = [receipt.id for receipt in receipts if receipt.duplicate]
        if known:
            with suppress(RedisUnavailableError):  # whoever watches asks again
                await self._look_after(known)

    # -- answers ------------------------------------------------------------------------------------------

    async def _take_stored(self) -> None:
        """Write down what was answered since the last run ended, before anything is handed over again."""
        redis, model, inbox = self._redis, self._job_options.model, self._job_options.inbox
        while entries := await read_stored(redis, model, inbox, self._cursor):
            self._take(entries)
            await self._keep()

    async def _read(self) -> None:
        """Write answers down as they come, for ever."""
        options = self._job_options
        async with aclosing(entries_after(self._client.url, options.model, options.inbox, self._cursor)) as reads:
            async for entries in reads:
                if entries:
                    self._take(entries)
                await self._keep()

    def _take(self, entries: Sequence[StreamEntry]) -> None:
        for entry_id, fields in entries:
            try:
                entry = InboxEntry.parse(self._job_options.inbox, entry_id, fields)
            except WireError as error:
                log.warning("an answer cannot be read: %s", error)
                self._unreadable[entry_id.decode("ascii")] = error  # `_look_after` finds out whose it is
                continue
            if entry.status != "chunk":
                self._take_one(entry)
        self._output.flush()
        self._cursor = entries[-1][0].decode("ascii")
        self._since_checkpoint += len(entries)
        self._heard()

    def _heard(self) -> None:
        self._last_news_s = time.monotonic()
        self._news.set()
        self._progress()

    def _take_one(self, entry: InboxEntry) -> None:
        place = self._place_of(entry.job_id)
        if place is None or place[0] in self._output.finished:
            return
        waiting = self._waiting.pop(place[0], None)
        custom_id = waiting.custom_id if waiting is not None else self._custom_id_at(*place)
        self._finish(place[0], custom_id, entry)

    def _custom_id_at(self, number: int, offset: int) -> str:
        """Whose line that is; an earlier run handed it over."""
        custom_id, _ = parse_id(self._source.line_at(number, offset))
        self._output.custom_ids.add(custom_id)
        return custom_id

    def _finish(self, number: int, custom_id: str, entry: InboxEntry) -> None:
        try:
            result = entry.to_result(self._job_options.model)
        except WireError as error:
            self._fail(number, custom_id, _failure_from(error))
            return
        if not result.ok:
            self._fail(number, custom_id, failure_of(result))
            return
        try:
            fields = answer_fields(result, self._tensors)
        except ValueError as error:
            self._fail(number, custom_id, Failure(code=FailureCode.NOT_FINITE, message=str(error)))
            return
        self._output.write_done(number, custom_id, fields)

    def _fail(self, number: int, custom_id: str, failure: Failure) -> None:
        self._output.write_failed(number, custom_id, failure_fields(failure))

    async def _keep(self) -> None:
        """Now and then, bring what was written to disk, and let Redis forget it."""
        now_s = time.monotonic()
        due = now_s - self._last_checkpoint_s >= _CHECKPOINT_EVERY_S or self._since_checkpoint >= _CHECKPOINT_EVERY
        if due and self._since_checkpoint:
            self._output.checkpoint(self._cursor)
            self._last_checkpoint_s, self._since_checkpoint = now_s, 0
            await self._trim()

    async def _trim(self) -> None:
        with suppress(RedisError):  # retention deletes them in the end
            await self._client.trim(self._job_options.inbox, model=self._job_options.model, through=self._cursor)

    # -- silence ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after what is silent, and give up when everything has been for too long."""
        look_at_s = _LOOK_AFTER_S
        while True:
            await asyncio.sleep(min(1.0, self._options.timeout_s / 4))
            silent_s = time.monotonic() - self._last_news_s
            if silent_s < _LOOK_AFTER_S:
                look_at_s = _LOOK_AFTER_S
            if not self._waiting:
                continue
            if silent_s >= self._options.timeout_s:
                raise await self._why_silent()
            if silent_s >= look_at_s or self._unreadable:
                look_at_s = silent_s + min(_LONGEST_LOOK_S, max(_LOOK_AFTER_S, silent_s))
                unreadable = list(self._unreadable)
                with suppress(RedisUnavailableError, RedisFullError):
                    await self._look_after([self._job_id(n, waiting.offset) for n, waiting in self._waiting.items()])
                    for entry_id in unreadable:
                        del self._unreadable[entry_id]

    async def _why_silent(self) -> Exception:
        try:
            await self._client.ping()
        except RedisError as error:
            return CommandError(str(error), code="redis_unavailable", hint=_RETRY_HINT, status=Exit.UNAVAILABLE)
        return CommandError(
            f"no answer for {self._options.timeout_s:g} s; {len(self._waiting):,} jobs wait for one",
            code="result_timeout",
            hint=_RETRY_HINT,
            status=Exit.TIMED_OUT,
        )

    async def _look_after(self, job_ids: Sequence[str]) -> None:
        """Find out what became of jobs: hand over again what Redis forgot, give up what has no answer to be had."""
        model, inbox = self._job_options.model, self._job_options.inbox
        records = await read_records(self._redis, model, job_ids)
        known = [(job_id, record) for job_id, record in zip(job_ids, records, strict=True) if record is not None]
        ended = [(job_id, record.entry_id) for job_id, record in known if record.state.ended]
        entries = await read_entries(self._redis, model, inbox, [entry_id for _, entry_id in ended])
        for (job_id, entry_id), entry in zip(ended, entries, strict=True):
            self._settle(job_id, entry_id, entry)
        forgotten = [job_id for job_id, record in zip(job_ids, records, strict=True) if record is None]
        if jobs := [job for job_id in forgotten if (job := self._job_again(job_id)) is not None]:
            await self._client.submit_patiently(jobs)

    def _settle(self, job_id: str, entry_id: str, raw: StreamEntry | None) -> None:
        """Finish the line of a job that has ended: by its answer, or by the lack of one."""
        place = self._place_of(job_id)
        if place is None or place[0] not in self._waiting:
            return  # its answer came while we asked
        try:
            if raw is None:
                gone = ResultGoneError("the job has ended, but its answer is gone: its retention is over")
                raise self._unreadable.get(entry_id, gone)
            self._take_one(InboxEntry.parse(self._job_options.inbox, *raw))
        except (ResultGoneError, WireError) as error:
            self._fail(place[0], self._waiting.pop(place[0]).custom_id, _failure_from(error))
        self._since_checkpoint += 1
        self._heard()

    def _job_again(self, job_id: str) -> Job | None:
        place = self._place_of(job_id)
        if place is None or place[0] not in self._waiting:
            return None
        _, fields = parse_id(self._source.line_at(*place))
        return parse_job(fields, job_id, self._job_options)


def _failure_from(error: Exception) -> Failure:
    problem = describe(error)
    return Failure(code=problem.code, message=problem.message, hint=problem.hint)
