"""Running a command's coroutine so that Ctrl-C ends it for certain.

One cancellation is not enough: redis-py's look for a broken connection is a time-out of zero seconds, and a
cancellation that comes just before it is taken for that time-out and lost. So it is repeated until all is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["run_to_end", "until_one_ends"]

T = TypeVar("T")

_ASK_AGAIN_S: Final = 0.3


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run it, and return what it returns.

    Raises:
        KeyboardInterrupt: the user interrupted it; it was cancelled and has ended.
    """
    return asyncio.run(_guarded(work))


async def _guarded(work: Coroutine[Any, Any, T]) -> T:
    # What asyncio.run cancels, and cancels once, is this task and not the work.
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        await _end({task})
        await _end(asyncio.all_tasks() - {asyncio.current_task()})
    return task.result()


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run them all until the first ends; raise what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they are over, however they end."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_ASK_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
