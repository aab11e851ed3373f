"""Holding processes to a part of the time, so that they are what everybody waits for on a machine with few cores.

A process that runs for a quarter of each period can take no more than a quarter of a core, whatever it is given to do.
So it can be seen what a second of its kind brings where the first alone would take all cores together with the rest.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

__all__ = ["HeldProcesses"]

_PERIOD_S: Final = 0.1
"""Short against a lease; what runs of it is long against a batch, and against a switch between processes."""


class HeldProcesses:
    """Lets processes of this user run for a share of the time, one after the other, until its context ends.

    Args:
        pids: of the processes.
        share: of the time; above 0, at most 1.
    """

    def __init__(self, pids: Collection[int], share: float) -> None:
        self._run_s, self._stop_s = share * _PERIOD_S, (1 - share) * _PERIOD_S
        self._over = threading.Event()
        # Together they would have the cores to themselves for most of the time, and then fight for them.
        begins_s = [place / len(pids) * _PERIOD_S for place in range(len(pids))]
        self._threads = [
            threading.Thread(target=self._hold, args=(pid, begin_s), name=f"held-{pid}")
            for pid, begin_s in zip(pids, begins_s, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _hold(self, pid: int, begin_s: float) -> None:
        with suppress(ProcessLookupError):
            self._over.wait(begin_s)
            while not self._over.wait(self._run_s):
                os.kill(pid, signal.SIGSTOP)
                self._over.wait(self._stop_s)
                os.kill(pid, signal.SIGCONT)
