"""The stream of a job, for asyncio: its text as it is generated, and its result at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import redis.asyncio

from headrace.errors import ResultTimeoutError
from headrace.messages.chunk import Chunk, unpack_chunk
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import CancelOutcome, Job, Receipt, SubmitOutcome
from headrace.messages.result import Result
from headrace.models.shards import Shards
from headrace.streaming.progress import StreamProgress
from headrace.streaming.source import ForeignSource, OwnSource, Source, later
from headrace.telemetry.tracing import received

if TYPE_CHECKING:
    from headrace.aio import AsyncClient

__all__ = ["AsyncStream"]

_SLACK_MS: Final = 60_000
"""How far the server's clock may have been set back since the job was submitted."""


class AsyncStream:
    """What is generated of one job, as it comes: iterate for pieces of text, or over `chunks()` for all there is.

    The job is handed over, or looked for, at the first piece, or by `start`. At the end `result` is its terminal entry.
    A job that fails raises there what `Result.unwrap` raises, behind all the text there is. To stop iterating leaves
    the job running, and to iterate again goes on; `cancel` stops it. Use it as a context manager, or call `aclose`,
    unless you read to the end.

    Args:
        client: through which.
        connection: of the client.
        shards: of the client.
        job: to be handed over, or the receipt or the id of one that was.
        model: whose job, if it is given by its id.
        after: a `Chunk.cursor`, to go on behind that chunk; "0" is all that is kept.
        timeout_s: how long to wait for each chunk.

    Raises:
        ValueError: `after` is no cursor.
    """

    def __init__(
        self,
        client: AsyncClient,
        connection: redis.asyncio.Redis,
        shards: Shards,
        job: Job | Receipt | str,
        *,
        model: str | None = None,
        after: str = "0",
        timeout_s: float | None = None,
    ) -> None:
        self._client = client
        self._redis = connection
        self._shards = shards
        self._job = job
        self._named_model = model
        self._progress = StreamProgress(after)
        self._timeout_s = timeout_s
        self._model = self._job_id = ""
        self._source: Source | None = None
        self._unread: deque[InboxEntry] = deque()
        self._ready: deque[Chunk] = deque()
        self._result: Result | None = None

    # -- opening ------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Hand the job over, or look for it, now rather than at the first piece.

        Raises:
            InvalidJobError, UnknownModelError, QueueFullError, TenantQueueFullError: it was refused.
            ResultGoneError: there is no such job, or its retention is over.
        """
        if self._source is None and self._result is None:
            self._source = await self._opened()
        return self

    async def _opened(self) -> Source:
        if isinstance(self._job, Job):
            return await self._handed_over(self._job)
        return await self._found(self._job, self._named_model)

    async def _handed_over(self, job: Job) -> Source:
        if "stream" not in job.params:
            job = job.model_copy(update={"params": {**job.params, "stream": True}})
        self._model, self._job_id = await self._shards.name(job.model, job.id), job.id
        if job.inbox not in (None, self._client.inbox):
            return await self._found(await self._client.submit(job), None)
        source = self._own_source(None)  # before the first chunk can be there
        try:
            receipt = await self._client.submit(job)
        except BaseException:
            await source.close(ended=False)
            raise
        if receipt.outcome is SubmitOutcome.DUPLICATE:
            await source.close(ended=False)
            return await self._found(receipt, None)
        self._client.own_inbox.deliver_to(receipt, source.end)
        return source

    async def _found(self, job: Receipt | str, model: str | None) -> Source:
        """The source of a job that was submitted before."""
        status = await self._client.status(job, model=model)
        self._model, self._job_id = status.model, status.id
        after = later(self._progress.entry_id, f"{max(0, status.submitted_ms - _SLACK_MS)}-0")
        if status.inbox != self._client.inbox:
            return ForeignSource(self._redis, self._client.url, status.model, status.inbox, status.id, after=after)
        source = self._own_source(after)
        receipt = Receipt(status.model, status.id, status.inbox, SubmitOutcome.ACCEPTED)
        self._client.own_inbox.deliver_to(receipt, source.end)
        return source

    def _own_source(self, after: str | None) -> OwnSource:
        demultiplexer = self._client.own_inbox.demultiplexer(self._model)
        return OwnSource(self._redis, demultiplexer, self._model, self._client.inbox, self._job_id, after=after)

    # -- reading ------------------------------------------------------------------------------------------

    async def next_chunk(self) -> Chunk | None:
        """The next chunk; None at the end of a job that was answered.

        Raises:
            ResultTimeoutError: nothing came within `timeout_s`. The job goes on; ask again.
            JobFailedError: it has ended, and not with an answer.
            DecodeError: something of the stream is missing.
            ResultGoneError: its beginning, or its answer, was consumed, or its retention is over.

        And, the first time, what `start` raises.
        """
        if self._source is None:
            await self.start()
        while not self._ready:
            if self._result is not None:
                self._result.unwrap()
                return None
            if not self._unread:
                self._unread.extend(await self._read())
            await self._take(self._unread.popleft())
        return self._ready.popleft()

    async def _read(self) -> Any:
        assert self._source is not None  # since `start`
        try:
            return await self._source.next(self._timeout_s)
        except TimeoutError:
            raise ResultTimeoutError(
                f"nothing of job {self._job_id} of {self._model} for {self._timeout_s} s"
            ) from None

    async def _take(self, entry: InboxEntry) -> None:
        if entry.status == "chunk":
            chunk = self._progress.take(entry.entry_id, unpack_chunk(entry.body))
            if chunk is not None:
                self._ready.append(chunk)
            return
        result = entry.to_result(self._model)
        received(result)
        self._ready.extend(self._progress.rest(result))
        self._result = result
        chunk_ids = await self._close_source(ended=True)
        self._client.own_inbox.consumed(self._model, entry, chunk_ids)

    def chunks(self) -> AsyncGenerator[Chunk]:
        """All chunks, of all choices; raises what `next_chunk` raises."""
        return _all_of(self.next_chunk)

    async def next_piece(self) -> str | None:
        """The next piece of the first choice's text; None at the end. Raises what `next_chunk` raises."""
        while (chunk := await self.next_chunk()) is not None:
            if chunk.index == 0 and chunk.text:
                return chunk.text
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if (piece := await self.next_piece()) is None:
            raise StopAsyncIteration
        return piece

    # -- about ----------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model, or its shard, once started."""
        return self._model

    @property
    def id(self) -> str:
        """The job's id, once started."""
        return self._job_id

    @property
    def result(self) -> Result | None:
        """The terminal entry, once everything before it was read."""
        return None if self._ready else self._result

    @property
    def cursor(self) -> str:
        """Where it stands: another stream goes on behind it."""
        return self._progress.cursor

    async def cancel(self) -> CancelOutcome:
        """Stop the job; the stream ends with what there is of it."""
        await self.start()
        return await self._client.cancel(self._job_id, model=self._model)

    async def aclose(self) -> None:
        """Stop watching. The job goes on."""
        await self._close_source(ended=False)

    async def _close_source(self, *, ended: bool) -> Any:
        source, self._source = self._source, None
        return await source.close(ended=ended) if source is not None else ()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _all_of(next_chunk: Callable[[], Coroutine[Any, Any, Chunk | None]]) -> AsyncGenerator[Chunk]:
    while (chunk := await next_chunk()) is not None:
        yield chunk
