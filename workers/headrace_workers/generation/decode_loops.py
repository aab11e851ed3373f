"""The decode loops of one replica: a thread for each of its engines, for as long as that has jobs or may be given some.

Used on the event loop, which waits for no step: a loop ends beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace_workers.engines.stepping import StepEngine
from headrace_workers.generation.decode_loop import DecodeLoop

__all__ = ["DecodeLoops"]


class DecodeLoops:
    """Finds the loop of an engine.

    Args:
        begin: makes one, whose thread runs from then on.
    """

    def __init__(self, begin: Callable[[StepEngine], DecodeLoop]) -> None:
        self._begin = begin
        self._loops: dict[int, DecodeLoop] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}

    async def of(self, engine: StepEngine) -> DecodeLoop:
        """What has an engine step: one thread, also where the engine comes back into its place."""
        while (ending := self._ending.get(id(engine))) is not None:
            await asyncio.shield(ending)
        loop = self._loops.get(id(engine))
        if loop is None:
            loop = self._loops[id(engine)] = self._begin(engine)
        return loop

    def left(self, engine: StepEngine) -> None:
        """An engine that is not in place any more has no jobs: its loop ends after the step that runs."""
        loop = self._loops.pop(id(engine), None)
        if loop is not None:
            self._ending[id(engine)] = asyncio.create_task(self._end(engine, loop))

    async def _end(self, engine: StepEngine, loop: DecodeLoop) -> None:
        await asyncio.to_thread(loop.close)
        del self._ending[id(engine)]

    async def close(self) -> None:
        """End all of them, each after the step that runs."""
        for loop in self._loops.values():
            await asyncio.to_thread(loop.close)
        await asyncio.gather(*self._ending.values())
