"""One call to the server for all that tasks hand over in one turn of the event loop.

A service that runs a hundred jobs at once, each in a task of its own, would else make a hundred calls, on as many
connections as a client may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from headrace.tasks import end_task

__all__ = ["SharedCalls"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


class SharedCalls(Generic[K, T, R]):
    """Calls of several kinds; items of one kind go together.

    Args:
        call: sends items, and returns an outcome for each; called for at most `most` of them, unless one task has more.
        most: items a call.
    """

    def __init__(self, call: Callable[[K, Sequence[T]], Awaitable[Sequence[R]]], *, most: int) -> None:
        self._call = call
        self._most = most
        self._open: dict[K, _Shared[T, R]] = {}

    async def outcomes(self, kind: K, items: Sequence[T]) -> Sequence[R]:
        """Send items with those of others, and return their own outcomes. Raises what the call raises.

        Who is cancelled takes nothing from the others; the last one ends the call.
        """
        shared = self._open.get(kind)
        if shared is None or len(shared.items) + len(items) > self._most:
            shared = self._open[kind] = _Shared()
            shared.task = asyncio.create_task(self._make(kind, shared))
        first = len(shared.items)
        shared.items += items
        return (await self._wait(kind, shared))[first : first + len(items)]

    async def _wait(self, kind: K, shared: _Shared[T, R]) -> Sequence[R]:
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._close(kind, shared)
                await end_task(shared.task)

    async def _make(self, kind: K, shared: _Shared[T, R]) -> Sequence[R]:
        """Runs when the tasks that are ready now have had their turn."""
        self._close(kind, shared)
        return await self._call(kind, shared.items)

    def _close(self, kind: K, shared: _Shared[T, R]) -> None:
        """Nobody joins this call any more."""
        if self._open.get(kind) is shared:
            del self._open[kind]


class _Shared(Generic[T, R]):
    """A call, and how many wait for it."""

    task: asyncio.Task[Sequence[R]]

    def __init__(self) -> None:
        self.items: list[T] = []
        self.waiting = 0
