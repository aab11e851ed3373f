"""Reading a model's lanes through the consumer group, by credit.

Whatever goes wrong with a read, the reader then adopts: it looks at all that is pending for its consumer in its lanes,
whether it was to get that from this read, from one that was made for others as well, or long before. So a reply may be
lost, and a read of many models given up, without anybody knowing what was in it.

Nor is it known when a read that failed is over: where a network was cut, the command may still be in a kernel or a
proxy before the server, and be carried out once packets pass again, after somebody looked. So the reader looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from redis.exceptions import ResponseError

from headrace.errors import DecodeError, RedisError
from headrace.keys import LANES, keys_of, priority_of
from headrace.messages import LaneEntry
from headrace.server.backoff import Backoff
from headrace.tasks import end_task
from headrace_cluster.router.lane_reads import LaneReads, Streams

__all__ = ["Credit", "LaneReader"]

log = logging.getLogger("headrace.router")

_PRIORITIES: Final = 3
_ADOPTED_AT_ONCE: Final = 256
"""Entries of one lane."""
_LOOK_AGAIN_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""After the last read that failed. Pauses between a kernel's attempts to send double, and it gives up after some 100 s
(Linux: `tcp_orphan_retries`)."""

Credit = Callable[[int, int], int]
"""How many entries of each of its lanes may be read of a priority now, given that and the number of its lanes that had
entries at the last read. With 0 nothing is read until `LaneReader.credit_changed`."""


class LaneReader:
    """One consumer of the group: one for each life of a router, so that what it holds is told from what a former held.

    The lanes of each priority are read for themselves, lest one that has no credit keep the others from blocking.

    Args:
        reads: how lanes are read, as which consumer.
        model: whose lanes.
        credit: what may be read.
        take: gets what was read.
        restore: makes the group anew after the server lost it.
    """

    def __init__(
        self,
        reads: LaneReads,
        model: str,
        *,
        credit: Credit,
        take: Callable[[Sequence[LaneEntry]], None],
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        self._parts = [
            _PriorityReader(reads, model, priority, credit=credit, take=take, restore=restore)
            for priority in range(_PRIORITIES)
        ]

    @property
    def reachable(self) -> bool:
        """Whether the last attempts to read succeeded."""
        return all(part.reachable for part in self._parts)

    @property
    def paused(self) -> bool:
        """Whether nothing is read till there is credit."""
        return all(part.paused for part in self._parts)

    def credit_changed(self) -> None:
        """There may be more to read than when `credit` was last asked."""
        for part in self._parts:
            part.changed.set()

    def adopt_again(self) -> None:
        """Look once more at everything this consumer was given: `take` may have forgotten some of it."""
        for part in self._parts:
            part.adopt_again()

    def stop(self) -> None:
        """Read nothing more; `run` returns at the latest when its blocking reads end."""
        for part in self._parts:
            part.stopped = True
            part.changed.set()

    async def run(self) -> None:
        """Read until stopped. An outage of Redis is waited out."""
        # Who takes over from the dead looks for them in the last lane, so nobody reads another before that one.
        last = next(part for part in self._parts if LANES - 1 in part.lanes)
        tasks = [asyncio.create_task(part.run(after=None if part is last else last.entered)) for part in self._parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                await end_task(task)


class _PriorityReader:
    """Reads the lanes of one priority."""

    def __init__(
        self,
        reads: LaneReads,
        model: str,
        priority: int,
        *,
        credit: Credit,
        take: Callable[[Sequence[LaneEntry]], None],
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        self.lanes = tuple(lane for lane in range(LANES) if priority_of(lane) == priority)
        self.changed = asyncio.Event()
        """Set when there may be credit, or something else to do."""
        self.entered = asyncio.Event()
        """Set when the consumer is known to be one of these lanes', or never will be."""
        self.adopting = True
        self.stopped = False
        self.reachable = False
        self.paused = False
        self._reads = reads
        self._model = model
        self._priority = priority
        self._credit = credit
        self._take = take
        self._restore = restore
        self._keys = tuple(keys_of(model).lanes[lane] for lane in self.lanes)
        self._lane_of = {key.encode(): lane for key, lane in zip(self._keys, self.lanes, strict=True)}
        # As long as nothing is known, all may have entries: no more is read than there is room.
        self._active = len(self.lanes)
        self._quiet = False
        """Whether the last read has left nothing in the lanes."""
        self._timers: list[asyncio.TimerHandle] = []

    def adopt_again(self) -> None:
        """Look at all that this consumer was given, before anything new is read."""
        self.adopting = True
        self.changed.set()

    async def run(self, *, after: asyncio.Event | None) -> None:
        """Read until stopped, once `after` has come.

        Raises:
            Exception: what `credit` or `take` raised.
        """
        if after is not None:
            await after.wait()
        backoff = Backoff()
        try:
            while not self.stopped:
                try:
                    if self.adopting:
                        await self._adopt()
                    self.entered.set()
                    await self._step()
                except RedisError as error:
                    log.warning("%s; trying again", error)
                    self.reachable = False
                    self.adopting = True  # a reply may have been lost on its way, and what it held is ours
                    self._quiet = False
                    await backoff.pause()
                    await self._repair(error)
                    self._look_again()
                else:
                    self.reachable = True
                    backoff.reset()
        finally:
            self.entered.set()
            self._forget_timers()

    def _look_again(self) -> None:
        self._forget_timers()
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(later_s, self.adopt_again) for later_s in _LOOK_AGAIN_S]

    def _forget_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    async def _step(self) -> None:
        count = self._credit(self._priority, self._active)
        if not count:
            await self._wait_for_credit()
            return
        reply = await self._reads.wait(self._keys, count) if self._quiet else None
        if reply is None:
            reply = await self._reads.read(dict.fromkeys(self._keys, ">"), count, blocking=self._quiet)
        self._quiet = all(len(items) < count for _, items in reply)
        if reply:
            self._active = len(reply)
            self._take(self._parse(reply))

    async def _wait_for_credit(self) -> None:
        self.changed.clear()
        if self.stopped:  # while entries were adopted, perhaps: nobody will set it again
            return
        self.paused = True
        await self.changed.wait()
        self.paused = False

    async def _adopt(self) -> None:
        """Take everything that this consumer was given before: `take` knows what it has already."""
        self.adopting = False
        after = dict.fromkeys(self._keys, "0")
        try:
            while reply := await self._reads.read(after, _ADOPTED_AT_ONCE, blocking=False):
                self._take(self._parse(reply))
                after = {str(key, "utf-8"): str(items[-1][0], "ascii") for key, items in reply}
        except RedisError:
            self.adopting = True
            raise

    def _parse(self, reply: Streams) -> list[LaneEntry]:
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
