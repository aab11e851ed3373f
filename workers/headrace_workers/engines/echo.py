"""The engine that answers with its input: for measuring everything around an engine, and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["EchoEngine"]


class EchoEngine:
    """Answers at once, without a model. The unit of work is one job."""

    def __init__(self) -> None:
        self.info = EngineInfo(variant="echo", task="echo", device="cpu", load_s=0.0)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Everything is valid."""
        return [Prepared(1, value) for value, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """The inputs, as they came."""
        return [item.data for item in items]

    def example(self) -> tuple[Any, dict[str, Any]]:
        """Any text."""
        return "headrace", {}
