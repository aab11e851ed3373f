"""`headrace submit --stream`: texts as they are generated, for people and for programs.

One answer flows onto the terminal. Several have a line each, which shows how they end at the moment, and are printed
in whole at the end. Where nobody watches, answers are printed one after the other, in the order of the texts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headrace.aio import AsyncClient
from headrace.cli.output import Exit, Output, describe, report
from headrace.cli.rendering import failure_of, result_fields, visible
from headrace.errors import JobFailedError, ResultGoneError, ResultTimeoutError, WireError
from headrace.messages.chunk import Chunk
from headrace.messages.job import CancelOutcome, Job
from headrace.stream import AsyncStream

__all__ = ["stream_jobs"]

_CANCEL_WITHIN_S: Final = 5.0
_FRAMES_PER_S: Final = 12


class _Show:
    """Where the chunks of several jobs go, while the context lasts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """All that comes has come."""

    def chunk(self, number: int, stream: AsyncStream, chunk: Chunk) -> None:
        """Some of the answer to text `number`."""
        raise NotImplementedError

    def end(self, number: int, stream: AsyncStream, error: Exception | None) -> None:
        """Its end, once, and what was wrong."""
        raise NotImplementedError


async def stream_jobs(client: AsyncClient, jobs: Sequence[Job], *, timeout_s: float, output: Output) -> Exit:
    """Hand jobs over and show their answers as they come; jobs that are interrupted are cancelled."""
    streams = [client.stream(job) for job in jobs]
    try:
        for stream in streams:
            await stream.start()
        with _show_of(len(jobs), output) as show:
            follows = (_follow(number, stream, show, timeout_s) for number, stream in enumerate(streams))
            return max(await asyncio.gather(*follows))
    except asyncio.CancelledError:
        await _call_off(client, [stream for stream in streams if stream.id and stream.result is None])
        raise


async def _follow(number: int, stream: AsyncStream, show: _Show, timeout_s: float) -> Exit:
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in stream.chunks():
                show.chunk(number, stream, chunk)
        show.end(number, stream, None)
        return Exit.DONE
    except JobFailedError as error:
        show.end(number, stream, error)
        return Exit.FAILED
    except (ResultGoneError, WireError) as error:
        show.end(number, stream, error)
        return describe(error).status
    except TimeoutError:
        late = ResultTimeoutError(f"job {stream.id} of {stream.model} has no answer yet")
        show.end(number, stream, late)
        return describe(late).status


async def _call_off(client: AsyncClient, streams: Sequence[AsyncStream]) -> None:
    """Cancel what runs, even while the interrupted command is asked again and again to end."""
    ids: dict[str, list[str]] = {}
    for stream in streams:
        ids.setdefault(stream.model, []).append(stream.id)
    calls = [asyncio.create_task(client.cancel_many(some, model=model)) for model, some in ids.items()]
    until_s = asyncio.get_running_loop().time() + _CANCEL_WITHIN_S
    while (left := [call for call in calls if not call.done()]) and asyncio.get_running_loop().time() < until_s:
        try:
            await asyncio.wait(left, timeout=0.1)
        except asyncio.CancelledError:
            continue
    outcomes = [outcome for call in calls if call.done() and not call.exception() for outcome in call.result()]
    called_off = [outcome for outcome in outcomes if outcome in (CancelOutcome.CANCELLED, CancelOutcome.REQUESTED)]
    print(f"called off {len(called_off)} job(s)", file=sys.stderr)


# -- for whom ---------------------------------------------------------------------------------------------------


def _show_of(count: int, output: Output) -> _Show:
    if output.as_json:
        return _Lines(output)
    if count == 1:
        return _Flow()
    return _Table(count) if sys.stdout.isatty() else _InOrder(count)


class _Lines(_Show):
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


class _Flow(_Show):
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


class _InOrder(_Show):
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
