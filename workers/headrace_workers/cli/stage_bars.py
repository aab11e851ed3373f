"""A bar for each stage on stderr, or for a file a line when a stage begins, or for programs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from headrace_workers.compression.pipeline import Step

__all__ = ["stage_bars"]


@contextmanager
def stage_bars(*, as_json: bool) -> Iterator[Callable[[Step], None]]:
    """Gives a function that is told how far a compression is."""
    if as_json:
        yield lambda _step: None
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[what]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as display:
            yield _Bars(display)


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def __call__(self, step: Step) -> None:
        line = f"… {step.stage + 1}/{step.of} {step.kind}: {step.what}"
        if line != self._said:
            print(line, file=sys.stderr, flush=True)
        self._said = line


class _Bars:
    def __init__(self, display: Progress) -> None:
        self._display = display

    def __call__(self, step: Step) -> None:
        while len(self._display.tasks) <= step.stage:
            self._display.add_task(f"{step.stage + 1}/{step.of} {step.kind}", total=1.0, what="")
        for task in self._display.tasks[: step.stage]:
            self._display.update(task.id, completed=1.0, what="")
            self._display.stop_task(task.id)
        self._display.update(self._display.tasks[step.stage].id, completed=step.share, what=step.what)
