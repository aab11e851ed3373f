"""Ending asyncio tasks for certain, and telling those that wait.

redis-py sends under `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes just as the sending ends,
and looks for a broken connection with a time-out of zero seconds, which takes a cancellation for its own. A task that
sends one command after the other loses every second of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

__all__ = ["cancellation_kept", "end_task", "settle", "to_its_end"]

T = TypeVar("T")

_ASK_AGAIN_S: Final = 0.02
_LONGEST_PATIENCE_S: Final = 1.0


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raise at the end of the block a cancellation of this task that came within it and was lost.

    Raises:
        CancelledError: there was one, whatever else the block raised.
    """
    task = asyncio.current_task()
    asked = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > asked:
            raise asyncio.CancelledError


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, however it ends; ask again where asking once was not enough."""
    patience_s = _ASK_AGAIN_S
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=patience_s)
        patience_s = min(_LONGEST_PATIENCE_S, patience_s * 2)
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it as forgotten


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do it whole, however often this task is cancelled meanwhile: `end_task` may do so while it cleans up.

    Raises:
        CancelledError: this task was cancelled; the work is done all the same.
    """
    task, cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        with suppress(Exception):
            task.result()
        raise asyncio.CancelledError
    return task.result()


def settle(future: asyncio.Future[T], answer: T | BaseException) -> None:
    """Hand an answer, or an error, to whoever awaits the future, unless he left."""
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
