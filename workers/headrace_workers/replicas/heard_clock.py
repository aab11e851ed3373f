"""The Redis server's clock, as a replica hears of it: each batch says when it was sent."""

from __future__ import annotations

from typing import Final

__all__ = ["HeardClock"]

_KEPT_S: Final = 60.0


class HeardClock:
    """The server's clock as messages tell it, in seconds; `at_s` is this process's monotonic time.

    Each message says when it was sent. One that lay somewhere on its way, in a process that was stopped
    perhaps, tells less than an earlier one that came at once.
    """

    def __init__(self) -> None:
        self._offset_s = float("-inf")
        self._heard_s = float("-inf")

    def hear(self, sent_s: float, at_s: float) -> None:
        """A message that was sent at `sent_s` came in. What others told is forgotten after a while: clocks are set."""
        if sent_s - at_s >= self._offset_s or at_s - self._heard_s > _KEPT_S:
            self._offset_s, self._heard_s = sent_s - at_s, at_s

    def now_s(self, at_s: float) -> float:
        """The time on the server."""
        return at_s + self._offset_s
