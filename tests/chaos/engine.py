"""The engine of chaos replicas: it answers with a digest of the job's id, after what the job's wish asks for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from chaos.history import History
from chaos.workload import FLAKY_FAILURES, Wish, answer_to, wish_of
from headrace.errors import FailureCode
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["ChaosEngine"]

_SLOW_S: Final = 0.1
_CANCELLED_S: Final = 0.02
_HANG_S: Final = 600.0
_MEAL_BYTES: Final = 16 << 20


class ChaosEngine:
    """Does as it is told.

    Args:
        history: where it says what it starts.
        directory: where it counts the failures of flaky jobs, together with all other replicas.
        batch_s: what a batch takes at least.
    """

    def __init__(self, history: History, directory: Path, *, batch_s: float) -> None:
        self.info = EngineInfo(variant="chaos", task="test", device="cpu", load_s=0.0)
        self._history = history
        self._directory = directory
        self._batch_s = batch_s

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Everything is valid."""
        return [Prepared(1, job) for job, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Grant each its wish."""
        jobs = [str(item.data) for item in items]
        self._history.note("start", jobs=jobs)
        time.sleep(self._batch_s)
        return [self._grant(job, wish_of(job)) for job in jobs]

    def _grant(self, job: str, wish: Wish) -> Any:
        if wish is Wish.RAISE:
            raise RuntimeError("as asked")
        if wish is Wish.REFUSE:
            return ItemError(FailureCode.INVALID_INPUT, "as asked")
        if wish is Wish.FLAKY and self._fails_again(job):
            return ItemError(FailureCode.ENGINE_FAILED, "as asked", retryable=True)
        if wish is Wish.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if wish is Wish.EAT:
            _eat()
        if wish in _TAKES_S:
            time.sleep(_TAKES_S[wish])
        return answer_to(job)

    def _fails_again(self, job: str) -> bool:
        """Whether it has not failed as often as it is to; a file stands for each time."""
        for failure in range(FLAKY_FAILURES):
            try:
                (self._directory / f"{job}.{failure}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def example(self) -> tuple[Any, dict[str, Any]]:
        """A job that asks for nothing."""
        return "example-0.plain", {}


_TAKES_S: Final = {Wish.SLOW: _SLOW_S, Wish.CANCEL: _CANCELLED_S, Wish.HANG: _HANG_S}


def _eat() -> None:
    """Take memory up to the limit of the process, which raises `MemoryError`."""
    meals = []
    while True:
        meals.append(bytearray(_MEAL_BYTES))
