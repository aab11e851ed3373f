"""A bounded number of jobs in flight: what both clients' `map` moves along its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from headrace.errors import WireError
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import Job, Receipt
from headrace.messages.result import Result
from headrace.telemetry.tracing import received

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
        self._turns = 0
        self._next_turn = 0
        self._ready: dict[int, tuple[Receipt, InboxEntry | BaseException]] = {}
        self._handed_out: list[tuple[str, InboxEntry]] = []
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
            self._open += 1
            self._client.own_inbox.deliver_to(receipt, partial(self._deliver, self._turns, receipt))
            self._turns += 1

    def _deliver(self, turn: int, receipt: Receipt, answer: InboxEntry | BaseException) -> None:
        self._ready[turn] = receipt, answer
        self._news.set()

    async def take(self) -> list[Result]:
        """The answers whose turn it is: at least one, unless the window is empty.

        The client deletes them only with the next call, when the caller has seen every one of them.

        Raises:
            RedisError: the inbox cannot be read.
            WireError: an answer cannot be understood.
        """
        for model, entry in self._handed_out:
            self._client.own_inbox.consumed(model, entry)
        self._handed_out.clear()
        while not self.empty:
            self._news.clear()
            if turns := self._due():
                return [self._hand_out(turn) for turn in turns]
            await self._news.wait()
        return []

    def _due(self) -> list[int]:
        if not self._ordered:
            return list(self._ready)
        first = self._next_turn
        while self._next_turn in self._ready:
            self._next_turn += 1
        return list(range(first, self._next_turn))

    def _hand_out(self, turn: int) -> Result:
        receipt, answer = self._ready.pop(turn)
        self._open -= 1
        if isinstance(answer, BaseException):
            raise answer
        try:
            result = answer.to_result(receipt.model)
        except WireError as error:
            raise type(error)(f"job {receipt.id}: {error}") from None
        received(result)
        self._handed_out.append((receipt.model, answer))
        return result
