"""How long replicas of a pool take to start, measured: from a target that rose to a replica more that runs."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["StartUpTimes"]

_REMEMBERED: Final = 9
_LONGEST_S: Final = 3600.0


class StartUpTimes:
    """Watches one pool. The median of the last starts counts: one that waited for a node says little of the next.

    Args:
        usual_s: what is believed before the first start.
    """

    def __init__(self, usual_s: float) -> None:
        self._usual_s = usual_s
        self._asked_s: deque[float] = deque()
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._target: int | None = None
        self._running = 0

    def note(self, now_s: float, running: int, target: int) -> None:
        """How many replicas run and shall run."""
        if self._target is None:  # what was asked for before, nobody timed
            self._target, self._running = target, running
            return
        for _ in range(target - self._target):
            self._asked_s.append(now_s)
        for _ in range(running - self._running):
            if self._asked_s:
                self._took_s.append(min(_LONGEST_S, now_s - self._asked_s.popleft()))
        while len(self._asked_s) > max(0, target - running):  # asked for, and called off before it ran
            self._asked_s.pop()
        self._target, self._running = target, running

    @property
    def start_up_s(self) -> float:
        """Seconds from asking for a replica until it runs."""
        return sorted(self._took_s)[len(self._took_s) // 2] if self._took_s else self._usual_s

    @property
    def measured(self) -> int:
        """How many starts were timed, of the last."""
        return len(self._took_s)
