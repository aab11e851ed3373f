"""A service without a router or a replica: the test takes jobs and answers them itself, when it pleases.

It says only what every service says to Redis (register, XREADGROUP, COMPLETE), so that a test of the client
decides by itself which answer comes when, in which order, and how often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from headrace import scripts
from headrace.errors import FailureCode
from headrace.keys import GROUP, keys_of
from headrace.messages import LaneEntry, Status, pack_answer, pack_failure, unpack_payload
from headrace.models.registry import Limits, register
from headrace.scripts import Answer
from headrace.server.connection import commands, execute
from headrace.tasks import end_task

__all__ = ["HandService"]


class HandService:
    """Registers `model` and then waits for the test's orders.

    On leaving the context every job that still waits is answered, so that nothing stays in Redis for ever.
    """

    def __init__(self, url: str, model: str = "by-hand", *, limits: Limits | None = None) -> None:
        self.model = model
        self.redis = commands(url)
        self._limits = limits or Limits()
        self._answering: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await register(self.redis, self.model, self._limits)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answering is not None:
            await end_task(self._answering)
        if error is None:
            await self.answer_all()
        await self.redis.aclose()

    async def set_limits(self, limits: Limits) -> None:
        """Change what SUBMIT allows."""
        await register(self.redis, self.model, limits)

    async def take(self, count: int = 10_000, *, again: bool = False) -> list[LaneEntry]:
        """Take waiting jobs, high priority first; with `again`, those that were taken and not answered."""
        entries: list[LaneEntry] = []
        for lane, key in enumerate(keys_of(self.model).lanes):
            reply = await execute(
                self.redis, "XREADGROUP", "GROUP", GROUP, "hand", "COUNT", count, "STREAMS", key, "0" if again else ">"
            )
            for _, items in reply or ():
                entries += [LaneEntry.read(lane, entry_id, fields) for entry_id, fields in items if fields]
        return entries

    async def answer(self, *entries: LaneEntry, output: Any = "done") -> list[bool]:
        """Answer jobs; False where one had been answered before."""
        return await self._complete([(entry, Status.OK, pack_answer(output)) for entry in entries])

    async def fail(
        self, *entries: LaneEntry, status: Status = Status.ERROR, code: FailureCode = FailureCode.ENGINE_FAILED
    ) -> list[bool]:
        """Give jobs a terminal entry that is not `ok`."""
        return await self._complete([(entry, status, pack_failure(code, "by hand")) for entry in entries])

    async def _complete(self, answers: Sequence[tuple[LaneEntry, Status, bytes]]) -> list[bool]:
        ended: list[bool] = []
        for start in range(0, len(answers), scripts.MAX_JOBS):
            chunk = answers[start : start + scripts.MAX_JOBS]
            ended += await scripts.complete(
                self.redis,
                self.model,
                [Answer(entry.lane, entry.entry_id, entry.text, status, body) for entry, status, body in chunk],
            )
        return ended

    async def answer_all(self) -> None:
        """Answer everything that waits or was taken, each job with its own input."""
        for entry in [*await self.take(again=True), *await self.take()]:
            await self.answer(entry, output=unpack_payload(entry.payload)[0])

    def keep_answering(self, reply: Callable[[Any], Any] = lambda value: value, *, pause_s: float = 0.002) -> None:
        """From now on answer every job with `reply(input)`, in the background."""

        async def go_on() -> None:
            while True:
                for entry in await self.take():
                    await self.answer(entry, output=reply(unpack_payload(entry.payload)[0]))
                await asyncio.sleep(pause_s)

        self._answering = asyncio.create_task(go_on())

    async def inbox_entries(self, inbox: str) -> list[str]:
        """The entry ids that lie in an inbox now."""
        entries = await execute(self.redis, "XRANGE", keys_of(self.model).inbox(inbox), "-", "+")
        return [entry[0].decode() for entry in entries]
