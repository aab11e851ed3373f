"""Models of one process that compute in turn: a replica has so many cores, however many models it holds.

Two models that compute at once each take all threads, and both go slower than one after the other. A plain lock would
let a decoder, which steps again at once, keep all others out; so whoever waits longest is next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headrace_workers.engines.base import Prepared

__all__ = ["ComputeTurns", "TurnTakingEngine"]


class ComputeTurns:
    """A lock that is handed over in the order in which it was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it until the context ends."""
        mine = self._ask()
        if mine is not None:
            mine.acquire()
        try:
            yield
        finally:
            self._hand_over()

    def _ask(self) -> threading.Lock | None:
        """What to wait for; None if it is this one's turn already."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return None
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
            return mine

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class TurnTakingEngine:
    """An engine whose batches, or steps, wait for their turn. Whatever else is asked of it, it answers itself.

    Args:
        engine: an `Engine`, or a `StepEngine`.
        turns: of the process.
        ran: gets the seconds of each turn; called in it, so by one thread at a time.
    """

    def __init__(self, engine: Any, turns: ComputeTurns, ran: Callable[[float], None]) -> None:
        self._engine = engine
        self._turns = turns
        self._ran = ran

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Run prepared jobs together."""
        with self._timed_turn():
            outputs: list[Any] = self._engine.run(items)
            return outputs

    def step(self) -> Any:
        """Compute one step of all jobs that generate."""
        with self._timed_turn():
            return self._engine.step()

    @contextmanager
    def _timed_turn(self) -> Iterator[None]:
        with self._turns.turn():
            started_s = time.perf_counter()
            try:
                yield
            finally:
                self._ran(time.perf_counter() - started_s)
