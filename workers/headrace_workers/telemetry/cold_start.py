"""How long a replica took from the start of its process until it can answer, phase by phase.

The phases follow each other: `process` (the interpreter, Ray, and what a replica imports before it knows its engine),
`import` (what the engine needs), `fetch` (an artifact from where it lies), `load` (reading the model), `pack` (weights
into the form that kernels read, and choosing kernels) and `first_answer`. Engines say where they are by `phase`, which
does nothing unless somebody times them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Final, Literal

from headrace_workers.scoped import scoped

__all__ = ["PHASES", "ColdStart", "Phase", "phase"]

Phase = Literal["process", "import", "fetch", "load", "pack", "first_answer"]
PHASES: Final[tuple[Phase, ...]] = ("process", "import", "fetch", "load", "pack", "first_answer")

_timed: ContextVar[ColdStart | None] = ContextVar("_timed", default=None)


class ColdStart:
    """The seconds of each phase, as far as the start has come. A phase inside another is taken out of that."""

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = {}
        self._inner_s = [0.0]

    def note(self, name: Phase, seconds: float) -> None:
        """A phase, or a part of it, took so long."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def active(self) -> AbstractContextManager[None]:
        """Time the phases of what is called inside, in this thread."""
        return scoped(_timed, self)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Time what happens inside."""
        began_s = time.perf_counter()
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            took_s = time.perf_counter() - began_s
            self.note(name, max(0.0, took_s - self._inner_s.pop()))
            self._inner_s[-1] += took_s


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Time what happens inside, if the start of this replica is timed."""
    timed = _timed.get()
    if timed is None:
        yield
        return
    with timed.phase(name):
        yield
