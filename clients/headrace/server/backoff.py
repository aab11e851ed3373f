"""Pauses of whoever goes on by himself while Redis cannot be reached."""

from __future__ import annotations

import asyncio
import random
from typing import Final

__all__ = ["Backoff"]

_LONGEST_PAUSE_S: Final = 2.0


class Backoff:
    """Pauses between attempts to reach Redis: doubling, with full jitter, bounded."""

    def __init__(self, *, first_s: float = 0.05, longest_s: float = _LONGEST_PAUSE_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self.reset()

    def reset(self) -> None:
        """Start over after a success."""
        self._next_s = self._first_s

    async def pause(self) -> None:
        """Sleep a little longer than last time."""
        await asyncio.sleep(random.uniform(self._first_s, max(self._first_s, self._next_s)))
        self._next_s = min(self._longest_s, self._next_s * 2)
