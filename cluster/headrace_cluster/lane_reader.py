"""Reading a model's lanes through the consumer group, by credit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import ResponseError

from headrace.connection import BLOCK_MS, execute, reads, translated
from headrace.errors import DecodeError, RedisError
from headrace.keys import GROUP, LANES, keys_of, priority_of
from headrace.messages import LaneEntry
from headrace.reader import Backoff
from headrace_cluster.credit import Reading

__all__ = ["LaneReader"]

log = logging.getLogger("headrace.router")

_CREDIT_WAIT_S: Final = 0.01
"""While some lane is out of credit, how long until the others are looked at again."""


class LaneReader:
    """One consumer of the group, on one connection.

    Args:
        url: the Redis server.
        model: whose lanes.
        consumer: its name in the group: one for each life of a router, so that what it holds is told from
            what a former life held.
        plan: says what may be read now, or None.
        take: gets what was read.
        restore: makes the group anew after the server lost it.
        block_ms: how long a read waits at the server when there is nothing to read.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        consumer: str,
        plan: Callable[[], Reading | None],
        take: Callable[[Sequence[LaneEntry]], None],
        restore: Callable[[], Awaitable[None]],
        block_ms: int = BLOCK_MS,
    ) -> None:
        self._connection = reads(url, block_ms=block_ms)
        self._block_ms = block_ms
        self._model = model
        self._consumer = consumer
        self._plan = plan
        self._take = take
        self._restore = restore
        self._lane_of = {key.encode(): lane for lane, key in enumerate(keys_of(model).lanes)}
        self._credit = asyncio.Event()
        self._reachable = asyncio.Event()
        self._stopped = False
        self._adopting = True
        self.active = 1
        """The most lanes of one priority that had entries at the last read."""

    @property
    def reachable(self) -> bool:
        """Whether the last attempt to read succeeded."""
        return self._reachable.is_set()

    def credit_changed(self) -> None:
        """There may be more to read than when `plan` was last asked."""
        self._credit.set()

    def adopt_again(self) -> None:
        """Look once more at everything this consumer was given: `take` may have forgotten some of it."""
        self._adopting = True
        self._credit.set()

    def stop(self) -> None:
        """Read nothing more; `run` returns at the latest when its blocking read ends."""
        self._stopped = True
        self._credit.set()

    async def run(self) -> None:
        """Read until stopped. An outage of Redis is waited out."""
        backoff = Backoff()
        try:
            while not self._stopped:
                try:
                    if self._adopting:
                        await self._adopt()
                    await self._step()
                except RedisError as error:
                    log.warning("%s; trying again", error)
                    self._reachable.clear()
                    self._adopting = True  # a reply may have been lost on its way, and what it held is ours
                    await backoff.pause()
                    await self._repair(error)
                else:
                    self._reachable.set()
                    backoff.reset()
        finally:
            with suppress(Exception):
                await self._connection.aclose()

    async def _step(self) -> None:
        plan = self._plan()
        if plan is None:
            await self._wait_for_credit(None)
            return
        lanes = dict.fromkeys(plan.lanes, ">")
        reply = await self._ask(lanes, plan.count, self._block_ms if plan.all_lanes else None)
        if reply:
            parts = Counter(priority_of(self._lane_of[key]) for key, _ in reply)
            self.active = max(parts.values())
            self._take(self._parse(reply))
        elif not plan.all_lanes:
            await self._wait_for_credit(_CREDIT_WAIT_S)

    async def _wait_for_credit(self, timeout_s: float | None) -> None:
        self._credit.clear()
        if self._stopped:  # while entries were adopted, perhaps: nobody will set it again
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._credit.wait()

    async def _adopt(self) -> None:
        """Take everything that this consumer was given before: `take` knows what it has already."""
        self._adopting = False
        after = dict.fromkeys(range(LANES), "0")
        try:
            while reply := await self._ask(after, 256, None):
                self._take(self._parse(reply))
                after = {self._lane_of[key]: str(items[-1][0], "ascii") for key, items in reply}
        except RedisError:
            self._adopting = True
            raise

    async def _ask(self, after: Mapping[int, str], count: int, block_ms: int | None) -> Any:
        """The lanes that have entries behind the ids in `after`, as XREADGROUP replies them; empty if none has."""
        keys = keys_of(self._model).lanes
        block: tuple[str | int, ...] = () if block_ms is None else ("BLOCK", block_ms)
        async with translated(f"reading lanes of {self._model}"):
            found = await execute(
                self._connection,
                *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, *block, "STREAMS"),
                *(keys[lane] for lane in after),
                *after.values(),
            )
        return [stream for stream in found or () if stream[1]]

    def _parse(self, reply: Any) -> list[LaneEntry]:
        entries: list[LaneEntry] = []
        for key, items in reply:
            lane = self._lane_of[key]
            for entry_id, fields in items:
                if not fields:  # a history read names entries that were answered meanwhile
                    continue
                try:
                    entries.append(LaneEntry.read(lane, entry_id, fields))
                except DecodeError as error:
                    log.error("left alone in lane %d of %s: %s", lane, self._model, error)
        return entries

    async def _repair(self, error: RedisError) -> None:
        if isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith("NOGROUP"):
            with suppress(RedisError):
                await self._restore()
