"""Engines that misbehave on demand, for replicas in actors of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from headrace.errors import FailureCode
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["FragileEngine"]


class FragileEngine:
    """Answers with its process id, after what the input asks for.

    `raise`: the whole batch raises. `refuse`: an item error. `sleep:SECONDS`: takes its time first. `die`: the
    process ends. `hang`: it never comes back.
    """

    def __init__(self, variant: str = "fragile", example: str = "hello") -> None:
        self._example = example
        self.info = EngineInfo(variant=variant, task="test", device="cpu", load_s=0.0)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        return [Prepared(1, value) for value, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        return [self._answer(str(item.data)) for item in items]

    def _answer(self, wish: str) -> Any:
        if wish == "raise":
            raise RuntimeError("as asked")
        if wish == "die":
            os._exit(1)
        if wish == "hang":
            time.sleep(3600)
        if wish == "refuse":
            return ItemError(FailureCode.INVALID_INPUT, "as asked")
        if wish.startswith("sleep:"):
            time.sleep(float(wish.removeprefix("sleep:")))
        return os.getpid()

    def example(self) -> tuple[Any, dict[str, Any]]:
        return self._example, {}
