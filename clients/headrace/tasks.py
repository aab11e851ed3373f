"""Ending asyncio tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["end_task"]

_ASK_AGAIN_S = 0.1


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, however it ends.

    One request is not always enough: a cancellation that meets a reply inside redis-py's read is lost now
    and then, and the task would wait on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_ASK_AGAIN_S)
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it as forgotten
