"""The stream of a job for the synchronous client: `AsyncStream`, on the thread where that client lives."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from headrace.messages.chunk import Chunk
from headrace.messages.job import CancelOutcome
from headrace.messages.result import Result
from headrace.streaming.stream import AsyncStream

__all__ = ["Stream"]

T = TypeVar("T")


class Call(Protocol):
    """Runs a coroutine where the asynchronous client lives, and waits for it."""

    def __call__(self, work: Coroutine[Any, Any, T]) -> T: ...


class Stream:
    """The same for the synchronous client; see `AsyncStream`. The job was handed over when this is made."""

    def __init__(self, stream: AsyncStream, call: Call) -> None:
        self._stream = stream
        self._call = call
        call(stream.start())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if (piece := self._call(self._stream.next_piece())) is None:
            raise StopIteration
        return piece

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, of all choices; see `AsyncStream.chunks`."""
        while (chunk := self._call(self._stream.next_chunk())) is not None:
            yield chunk

    @property
    def model(self) -> str:
        """The model, or its shard."""
        return self._stream.model

    @property
    def id(self) -> str:
        """The job's id."""
        return self._stream.id

    @property
    def result(self) -> Result | None:
        """The terminal entry, once everything before it was read."""
        return self._stream.result

    @property
    def cursor(self) -> str:
        """Where it stands: another stream goes on behind it."""
        return self._stream.cursor

    def cancel(self) -> CancelOutcome:
        """Stop the job; the stream ends with what there is of it."""
        return self._call(self._stream.cancel())

    def close(self) -> None:
        """Stop watching. The job goes on."""
        with suppress(RuntimeError):  # the client was closed first, and everything with it
            self._call(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
