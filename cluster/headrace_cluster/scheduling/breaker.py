"""When replicas die too often, stop feeding them for a while.

A pool whose replicas keep dying is ill as a whole: a bad image, too little memory, a flood of poison. Sending
on only takes the replicas down as fast as they start. The breaker opens, lets one batch through after a
pause, and closes when one comes back; each death while it is half open doubles the pause.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Breaker"]


class Breaker:
    """Counts deaths of replicas over a sliding window. Time comes in as an argument.

    Args:
        deaths: how many within the window open it. Above log2 of a batch plus 2, lest the search for one
            poison job does.
        over_s: the window.
        pause_s: how long it stays open at first.
        longest_pause_s: and at most.
    """

    def __init__(
        self, *, deaths: int = 16, over_s: float = 60.0, pause_s: float = 2.0, longest_pause_s: float = 60.0
    ) -> None:
        self._limit = deaths
        self._over_s = over_s
        self._first_pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._deaths: deque[tuple[float, str]] = deque()
        self._pause_s = pause_s
        self._until_s: float | None = None

    def died(self, replica: str, now_s: float) -> None:
        """A replica died; it is counted once, however many batches it had."""
        if any(name == replica for _, name in self._deaths):
            return
        self._deaths.append((now_s, replica))
        while self._deaths[0][0] < now_s - self._over_s:
            self._deaths.popleft()
        if self._until_s is not None:
            self._pause_s = min(self._longest_pause_s, 2 * self._pause_s)
            self._until_s = now_s + self._pause_s
        elif len(self._deaths) >= self._limit:
            self._until_s = now_s + self._pause_s

    def answered(self) -> None:
        """A batch came back."""
        if self._until_s is not None:
            self._until_s, self._pause_s = None, self._first_pause_s
            self._deaths.clear()

    @property
    def closed(self) -> bool:
        """Whether batches flow as usual."""
        return self._until_s is None

    def allows(self, now_s: float, *, in_flight: int) -> bool:
        """Whether a batch may be sent now: half open, one at a time."""
        return self._until_s is None or (now_s >= self._until_s and in_flight == 0)

    def retry_at_s(self) -> float | None:
        """When it will be half open; None while it is closed."""
        return self._until_s
