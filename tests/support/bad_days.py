"""Engines that do in tests what real ones do on bad days."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.engines.echo import EchoEngine

__all__ = ["GatedEngine", "PickyEngine", "RecordingEngine", "SlowEngine"]

_GATE_S = 20.0


class RecordingEngine(EchoEngine):
    """An echo that keeps the size of every batch, and what it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.ran: list[Any] = []
        self.prepared: list[Any] = []

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        self.prepared += [value for value, _params in requests]
        return super().prepare(requests)

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        self.batches.append(len(items))
        self.ran += [item.data for item in items]
        return super().run(items)


class GatedEngine(RecordingEngine):
    """Runs nothing until the test opens its gate."""

    def __init__(self, *, is_open: bool = False) -> None:
        super().__init__()
        self._gate = threading.Event()
        if is_open:
            self._gate.set()

    def open(self) -> None:
        """Let everything run, from now on."""
        self._gate.set()

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        assert self._gate.wait(_GATE_S), "the test never opened the gate"
        return super().run(items)


class SlowEngine(RecordingEngine):
    """Takes a while for every batch, whatever its size."""

    def __init__(self, run_s: float) -> None:
        super().__init__()
        self.run_s = run_s

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        time.sleep(self.run_s)
        return super().run(items)


class PickyEngine(RecordingEngine):
    """Refuses an empty input, and raises on every batch that holds "poison"."""

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        empty = ItemError(FailureCode.INVALID_INPUT, "the input is empty", hint="give it at least one character")
        return [
            item if value else empty for item, (value, _params) in zip(super().prepare(requests), requests, strict=True)
        ]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        outputs = super().run(items)
        if any(item.data == "poison" for item in items):
            raise RuntimeError("this batch was poisoned")
        return outputs
