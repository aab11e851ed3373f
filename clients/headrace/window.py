"""A bounded number of jobs in flight: what both clients' `map` moves along its jobs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from headrace.errors import WireError
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import Job
from headrace.messages.result import Result

if TYPE_CHECKING:
    from headrace.aio import AsyncClient

__all__ = ["Window"]

_REFILL: Final = 64


class Window:
    """Jobs that were handed over and not yet answered to the caller.

    Args:
        client: through which they go.
        in_flight: how many there may be, answers waiting for their turn included.
        ordered: give answers in the order of the jobs, or as they come.
    """

    def __init__(self, client: AsyncClient, *, in_flight: int, ordered: bool) -> None:
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        self._client = client
        self._in_flight = in_flight
        self._ordered = ordered
        self._turns: deque[tuple[str, str]] = deque()
        self._ready: dict[tuple[str, str], InboxEntry | BaseException] = {}
        self._news = asyncio.Event()
        self._open = 0

    @property
    def room(self) -> int:
        """How many more jobs may be handed over."""
        return self._in_flight - self._open

    @property
    def wants_more(self) -> bool:
        """Whether there is room enough to be worth a call."""
        return self.room >= min(_REFILL, max(1, self._in_flight // 4)) or self._open == 0

    @property
    def empty(self) -> bool:
        """Whether every job has been answered to the caller."""
        return self._open == 0

    async def put(self, jobs: Sequence[Job]) -> None:
        """Hand jobs over, waiting while lanes are full. At most `room` of them.

        Raises:
            InvalidJobError, UnknownModelError.
        """
        for receipt in await self._client.submit_patiently(jobs):
            key = (receipt.model, receipt.id)
            self._open += 1
            self._turns.append(key)
            self._client.deliver_to(receipt, partial(self._deliver, key))

    def _deliver(self, key: tuple[str, str], answer: InboxEntry | BaseException) -> None:
        self._ready[key] = answer
        self._news.set()

    async def take(self) -> list[Result]:
        """The answers whose turn it is: at least one, unless the window is empty.

        Raises:
            RedisError: the inbox cannot be read.
            WireError: an answer cannot be understood.
        """
        while True:
            self._news.clear()
            keys = self._due()
            if keys or self.empty:
                return [self._hand_out(key) for key in keys]
            await self._news.wait()

    def _due(self) -> list[tuple[str, str]]:
        if not self._ordered:
            return list(self._ready)
        due = []
        while self._turns and self._turns[0] in self._ready:
            due.append(self._turns.popleft())
        return due

    def _hand_out(self, key: tuple[str, str]) -> Result:
        answer = self._ready.pop(key)
        self._open -= 1
        if isinstance(answer, BaseException):
            raise answer
        try:
            result = answer.to_result(key[0])
        except WireError as error:
            raise type(error)(f"job {key[1]}: {error}") from None
        self._client.consumed(key[0], answer)
        return result
