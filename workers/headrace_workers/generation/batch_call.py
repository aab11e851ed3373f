"""One call of a router: what it is told while the jobs of its batch run, and end one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

from headrace.messages import Fate, JobOutcomes

__all__ = ["LIFE_S", "BatchCall"]

LIFE_S: Final = 2.0
"""How often a router hears from a batch of which nothing has ended."""

_COALESCED_S: Final = 0.02
"""How long an outcome waits for others: messages cost more than what is in them."""


class BatchCall:
    """The outcomes of one batch, on their way to its router. Used on the event loop.

    Args:
        size: jobs of the batch.
        alive: asked whether the engine goes on, before a router is told that all is well.
        over: called when every job has ended here, one way or another.
    """

    def __init__(self, size: int, *, alive: Callable[[], bool], over: Callable[[], None]) -> None:
        self._left = size
        self._alive = alive
        self._over = over
        self._ended: list[tuple[int, Fate, int]] = []
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._computed = False

    def computed(self) -> None:
        """The engine has computed since it has jobs of this batch."""
        if not self._computed:
            self._computed = True
            self._news.set()

    def ended(self, number: int, fate: Fate, tokens: int) -> None:
        """What became of one job."""
        if self._left == 0:  # the whole batch failed before
            return
        self._ended.append((number, fate, tokens))
        self._left -= 1
        self._news.set()
        if not self._left:
            self._over()

    def fail(self, error: BaseException) -> None:
        """The jobs that are left cannot be run here: `messages` raises this."""
        if self._left:
            self._error, self._left = error, 0
            self._news.set()
            self._over()

    async def messages(self) -> AsyncGenerator[bytes]:
        """Packed `JobOutcomes` until every job has ended. Who stops listening changes nothing for the jobs."""
        while self._left or self._ended:
            await self._wait_for_news()
            outcomes = self._take()
            if outcomes.numbers or self._alive():
                yield outcomes.to_bytes()
        if self._error is not None:
            raise self._error

    async def _wait_for_news(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LIFE_S):
                await self._news.wait()
        if self._ended and self._left:
            await asyncio.sleep(_COALESCED_S)
        self._news.clear()

    def _take(self) -> JobOutcomes:
        ended, self._ended = self._ended, []
        numbers, fates, tokens = ([row[column] for row in ended] for column in range(3))
        return JobOutcomes(numbers, fates, tokens, self._computed)
