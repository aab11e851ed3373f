"""Which batches a replica runs beside each other, whichever routers sent them.

A batch of suspects has the replica to itself: if it dies then, the batch is to blame. A router alone cannot
see to that, for it knows only what it sent itself.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Turns"]

_KEPT_FREE_S: Final = 0.5
"""How long a busy replica takes nothing new after it has refused a lone batch, which will come again."""


class Turns:
    """Admits batches, or refuses them. Time comes in as an argument."""

    def __init__(self) -> None:
        self._running = 0
        self._alone = False
        self._kept_free_until_s = float("-inf")

    def enter(self, now_s: float, *, alone: bool) -> bool:
        """Whether a batch may run now; who may has to `leave`."""
        if alone and self._running and not self._alone:
            self._kept_free_until_s = now_s + _KEPT_FREE_S
        if self._alone or (self._running if alone else now_s < self._kept_free_until_s):
            return False
        self._running += 1
        self._alone = alone
        if alone:
            self._kept_free_until_s = float("-inf")
        return True

    def leave(self) -> None:
        """A batch that had entered is done."""
        self._running -= 1
        self._alone = False
