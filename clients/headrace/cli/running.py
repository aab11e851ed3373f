"""Running a command's coroutine so that Ctrl-C ends it for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from headrace.tasks import end_task

__all__ = ["run_to_end"]

T = TypeVar("T")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run it, and return what it returns.

    Raises:
        KeyboardInterrupt: the user interrupted it; it was cancelled and has ended.
    """
    return asyncio.run(_guarded(work))


async def _guarded(work: Coroutine[Any, Any, T]) -> T:
    # asyncio.run cancels once; the work is a task of its own, since a single cancellation can get lost in it.
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        await end_task(task)
    return task.result()
