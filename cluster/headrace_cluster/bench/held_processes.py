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

_PERIOD_S: Final = 0.04
"""Short against a lease, and against the time that a client waits; long against a switch between processes."""


class HeldProcesses:
    """Lets processes of this user run for a share of the time, all of them at once, until its context ends.

    Args:
        pids: of the processes.
        share: of the time; above 0, at most 1.
    """

    def __init__(self, pids: Collection[int], share: float) -> None:
        self._pids = pids
        self._run_s, self._stop_s = share * _PERIOD_S, (1 - share) * _PERIOD_S
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="held-processes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _hold(self) -> None:
        while not self._over.wait(self._run_s):
            self._send(signal.SIGSTOP)
            self._over.wait(self._stop_s)
            self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
