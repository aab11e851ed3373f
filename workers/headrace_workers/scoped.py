"""A context variable that holds a value for the length of a block, and what it held before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["scoped"]

T = TypeVar("T")


@contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Have the variable hold a value within the block, in this thread or task."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
