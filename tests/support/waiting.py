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


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within_s: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within_s: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within_s: float = 10.0) -> Any:
    """The first true value of `condition`, which may be a coroutine function; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        value = await value if inspect.isawaitable(value) else value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s; the last value was {value!r}"
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], T], *, within_s: float = 10.0) -> T:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s; the last value was {value!r}"
        time.sleep(_POLL_S)
    return value
