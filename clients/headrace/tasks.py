"""Ending asyncio tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["end_task"]

_ASK_AGAIN_S = 0.02


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, however it ends.

    One request is not always enough: redis-py sends under `asyncio.wait_for`, which on Python 3.11 loses a
    cancellation that comes just as the sending ends, and the task would wait on for ever.
    """
    patience_s = _ASK_AGAIN_S
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=patience_s)
        patience_s *= 2
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it as forgotten
