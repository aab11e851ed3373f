"""Texts as they are generated, shown to people and to programs.

One answer flows onto the terminal. Several have a line each, which shows how they end at the moment, and are printed
in whole at the end. Where nobody watches, answers are printed one after the other, in the order of the texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headrace.cli.output import Output, describe, report
from headrace.cli.rendering import failure_of, result_fields, visible
from headrace.errors import JobFailedError
from headrace.messages.chunk import Chunk
from headrace.streaming.stream import AsyncStream

__all__ = ["Show", "shown"]

_FRAMES_PER_S: Final = 12


class Show(Protocol):
    """Where the chunks of several jobs go."""

    def chunk(self, number: int, stream: AsyncStream, chunk: Chunk) -> None:
        """Some of the answer to text `number`."""

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        """Its end, once, and what was wrong."""


@contextmanager
def shown(count: int, output: Output) -> Iterator[Show]:
    """What suits so many answers and who reads them; all that comes has come when the context ends."""
    if output.as_json:
        yield _Lines(output)
    elif count == 1:
        yield _Flow()
    elif not sys.stdout.isatty():
        yield _InOrder(count)
    else:
        with _Table(count) as table:
            yield table


class _Lines:
    """For programs: an object for each chunk and each result, as they come."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def chunk(self, number: int, stream: AsyncStream, chunk: Chunk) -> None:
        fields: dict[str, Any] = {"index": chunk.index, "text": chunk.text, "tokens": chunk.tokens}
        fields["cursor"] = chunk.cursor
        if chunk.logprobs is not None:
            fields["logprobs"] = chunk.logprobs
        self._output.emit({"id": stream.id, "model": stream.model, "chunk": fields})

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        if stream.result is not None:
            self._output.emit(result_fields(stream.result))
        elif error is not None:
            problem = describe(error)
            fields = {"code": problem.code, "message": problem.message, "hint": problem.hint}
            self._output.emit({"id": stream.id, "model": stream.model, "error": fields})


class _Flow:
    """One answer: its first choice as it comes, the others behind it."""

    def __init__(self) -> None:
        self._others: dict[int, str] = {}

    def chunk(self, number: int, stream: AsyncStream, chunk: Chunk) -> None:
        if chunk.index == 0:
            _write(visible(chunk.text))
        else:
            self._others[chunk.index] = self._others.get(chunk.index, "") + chunk.text

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        _write("\n")
        for index in sorted(self._others):
            _write(f"[{index}] {visible(self._others[index])}\n")
        _say_error(stream, error)


class _InOrder:
    """Several answers where nobody watches: each in whole, in the order of the texts."""

    def __init__(self, count: int) -> None:
        self._texts = [""] * count
        self._ends: dict[int, tuple[AsyncStream, Exception | None]] = {}
        self._next = 0

    def chunk(self, number: int, stream: AsyncStream, chunk: Chunk) -> None:
        self._texts[number] += chunk.text if chunk.index == 0 else ""

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        self._ends[number] = stream, error
        self._say()

    def _say(self) -> None:
        """Print what ended, as far as everything before it has."""
        while (end := self._ends.pop(self._next, None)) is not None:
            _write(f"[{self._next}] {visible(self._texts[self._next])}\n")
            _say_error(*end)
            self._next += 1


class _Table(_InOrder):
    """Several answers on a terminal: a line each while they come."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._console = Console(markup=False, highlight=False, emoji=False)
        self._live = Live(
            console=self._console, get_renderable=self._lines, refresh_per_second=_FRAMES_PER_S, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._say()

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        self._ends[number] = stream, error

    def _lines(self) -> Group:
        return Group(*(self._line(number) for number in range(len(self._texts))))

    def _line(self, number: int) -> Text:
        head, mark = f"[{number}] ", "" if number in self._ends else " …"
        room = max(8, self._console.width - len(head) - len(mark) - 1)
        return Text(head + " ".join(visible(self._texts[number]).split())[-room:] + mark, no_wrap=True)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _say_error(stream: AsyncStream, error: Exception | None) -> None:
    if error is None:
        return
    if isinstance(error, JobFailedError) and stream.result is not None:
        failure = failure_of(stream.result)
        print(visible(f"{stream.id}  {stream.result.status}  {failure.code}: {failure.message}"), file=sys.stderr)
    else:
        report(error, as_json=False)
