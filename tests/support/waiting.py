"""Waiting in tests: polling with a deadline, never a sleep that hopes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

__all__ = ["eventually", "eventually_sync"]

T = TypeVar("T")

_POLL_S = 0.005
_POLL_SHARE = 0.02
"""Of what was waited so far: looking again and again takes its time from what is waited for."""


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within_s: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within_s: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within_s: float = 10.0) -> Any:
    """The first true value of `condition`, which may be a coroutine function; fails after `within_s`."""
    started = time.monotonic()
    while True:
        value = condition()
        value = await value if inspect.isawaitable(value) else value
        if value:
            return value
        await asyncio.sleep(_pause_s(started, within_s, value))


def eventually_sync(
    condition: Callable[[], T], *, within_s: float = 10.0, told: Callable[[], object] | None = None
) -> T:
    """The same for tests without an event loop; a failure shows what `told` gives rather than the last value."""
    started = time.monotonic()
    while not (value := condition()):
        time.sleep(_pause_s(started, within_s, value, told))
    return value


def _pause_s(started: float, within_s: float, value: object, told: Callable[[], object] | None = None) -> float:
    waited_s = time.monotonic() - started
    assert waited_s < within_s, f"not within {within_s} s; the last value was {told() if told else value!r}"
    return max(_POLL_S, _POLL_SHARE * waited_s)
