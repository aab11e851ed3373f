"""The engines of one replica while it changes from one variant of its model to another.

New work goes to the one that is in place; what another was given before it finishes. So a batch, and a generation, is
prepared, run and answered by one engine, whose variant its answer names. Used on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from headrace_workers.engines.base import Engine, EngineInfo

__all__ = ["EngineShelf"]

E = TypeVar("E", bound=Engine)


class EngineShelf(Generic[E]):
    """Says which engine takes new work, and when another has none any more.

    Args:
        engine: the first one in place.
        left: told of an engine that is not in place any more, once it has no work.
    """

    def __init__(self, engine: E, *, left: Callable[[E], None] = lambda _: None) -> None:
        self._engine: E | None = engine
        self._left = left
        self._uses: Counter[int] = Counter()
        self._in_place = asyncio.Event()
        self._in_place.set()
        self._idle = asyncio.Event()
        self.info: EngineInfo = engine.info
        """Of the one in place, or the last that was."""

    @property
    def in_place(self) -> bool:
        """Whether one takes new work."""
        return self._engine is not None

    @property
    def engine(self) -> E:
        """The one in place.

        Raises:
            LookupError: there is none at the moment.
        """
        if self._engine is None:
            raise LookupError("another engine is being loaded")
        return self._engine

    async def take(self) -> E:
        """The engine for a piece of work, which must be `give`n back; waits while there is none in place."""
        while self._engine is None:
            await self._in_place.wait()
        self._uses[id(self._engine)] += 1
        return self._engine

    def give(self, engine: E) -> None:
        """A piece of work of an engine has ended."""
        self._uses[id(engine)] -= 1
        if not self._uses[id(engine)]:
            del self._uses[id(engine)]
            if engine is not self._engine:
                self._left(engine)
            if not self._uses:
                self._idle.set()

    def busy(self, engine: E) -> bool:
        """Whether an engine has work that it was given."""
        return id(engine) in self._uses

    def put(self, engine: E) -> E | None:
        """Have an engine take what comes from now on; returns the one that did before, if any."""
        before, self._engine = self._engine, engine
        self.info = engine.info
        self._in_place.set()
        if before is not None and before is not engine and not self.busy(before):
            self._left(before)
        return before

    async def vacate(self) -> None:
        """Have what comes wait for the next `put`, and wait until no engine has any work.

        Raises:
            LookupError: there is none in place.
        """
        engine, self._engine = self.engine, None
        self._in_place.clear()
        if not self.busy(engine):
            self._left(engine)
        del engine  # which is to go from memory
        while self._uses:
            self._idle.clear()
            await self._idle.wait()
