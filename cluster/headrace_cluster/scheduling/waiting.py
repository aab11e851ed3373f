"""A job that waits in a router, and heaps of such jobs, which may leave without passing through the heap's top."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Item", "WaitingHeap", "WaitingJob"]

_SWEEP_AT: Final = 64
"""How many jobs that left may stay behind in a heap at least."""


@dataclass(slots=True, eq=False)
class WaitingJob:
    """One job in a router's hands."""

    key: Any
    """Whatever the router finds it again by; the former does not look at it."""
    tokens: int
    bytes: int
    priority: int
    submitted_s: float
    deadline_s: float | None = None
    tenant: str = ""
    """Whom the work is for."""
    attempts: int = 0
    """How often it was dispatched and came back."""
    lone_failures: int = 0
    """How often it failed while it ran alone on its replica."""
    failed_on: str | None = None
    """On which replica it did so last."""
    taken_over: bool = False
    """Whether it is from a router that died, which may have dispatched it."""
    interrupted: bool = False
    """Whether its replica has died in the middle of it once, and nobody was blamed for that."""
    due_s: float = field(default=0.0, init=False)
    waiting: bool = field(default=False, init=False)


Item = tuple[float, int, WaitingJob]
"""A job in a heap: by when, then by the order in which jobs came."""


class WaitingHeap:
    """Jobs by a time of theirs. One that waits no more stays behind until it is at the top, or many such are swept."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[WaitingJob]:
        return (item[2] for item in self._items if item[2].waiting)

    def push(self, item: Item, *, waiting: int) -> None:
        """Add a job to the `waiting` that are here and wait; those that left are swept when they are the most of it."""
        if len(self._items) > 2 * waiting + _SWEEP_AT:
            self._items[:] = {id(kept[2]): kept for kept in self._items if kept[2].waiting}.values()
            heapq.heapify(self._items)
        heapq.heappush(self._items, item)

    def head(self) -> Item | None:
        """The first job that waits, which stays."""
        items = self._items
        while items and not items[0][2].waiting:
            heapq.heappop(items)
        return items[0] if items else None

    def pop(self) -> Item:
        """Take the top out, which `head` has just told."""
        return heapq.heappop(self._items)
