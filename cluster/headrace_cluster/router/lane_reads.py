"""The connections on which a router process reads lanes, and reads at the server that many wait in together.

Lanes with jobs are read by themselves, those of a priority of a model at a time: such a read returns at once, and its
connection goes to the next. Lanes without wait with others of their kind, of any model: a blocked read names all of
them. So what it takes to wait, in connections and in commands, does not grow with the number of models.

Nothing is lost when the reply to a read is. What the server had given out by then is pending with the consumer, and
the error goes to everybody whose lanes the read named; each of them then looks at all that is pending for it, before
it reads anything new (`LaneReader`). The same happens to the others when one of them is cancelled in mid-read: the
connection is closed with what may be on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import redis.asyncio
from redis.exceptions import ResponseError

from headrace.errors import RedisError, RedisUnavailableError
from headrace.keys import GROUP
from headrace.server.cluster_client import ClusterClient
from headrace.server.connection import BLOCK_MS, execute, reads, translated
from headrace.tasks import end_task, settle

__all__ = ["LaneReads", "Streams"]

Streams = Sequence[tuple[bytes, Sequence[tuple[bytes, Sequence[bytes]]]]]
"""Lanes that have entries, by their keys, as XREADGROUP replies them."""

_TOGETHER: Final = 48
"""Who wait in one read at most, each with the eight lanes of a priority, or sixteen models: a job for one of them has
the others' lanes named anew."""
_AT_ONCE: Final = 16
"""Reads that do not wait at the server."""
_UNUSED_S: Final = 10.0
"""After how long a connection is closed that no read has needed."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """Lanes without jobs."""

    lanes: Sequence[str]
    count: int
    entries: asyncio.Future[Streams | None]
    reading: asyncio.Task[None] | None = None


class LaneReads:
    """Reads lanes as one consumer of their groups.

    Args:
        url: the Redis server.
        consumer: the name of this process's routers.
        block_ms: how long a read waits at the server when there is nothing to read.
    """

    def __init__(self, url: str, consumer: str, *, block_ms: int = BLOCK_MS) -> None:
        self._url = url
        self._consumer = consumer
        self._block_ms = block_ms
        first = reads(url, block_ms=block_ms)
        self._free: list[tuple[float, redis.asyncio.Redis]] = [(time.monotonic(), first)]
        """The last that came back is the next that is taken; those that have been here longest stand first."""
        self._apart = isinstance(first, ClusterClient)  # whose nodes have each their own models
        self._gathered: list[_Waiter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def read(self, after: Mapping[str, str], count: int, *, blocking: bool) -> Streams:
        """The entries of lanes behind the ids in `after`, by the lanes' keys; at most `count` of each.

        Raises:
            RedisError: there was no reply; what it would have said is pending with the consumer.
        """
        if blocking:
            return await self._ask(after, count, self._block_ms)
        async with self._turns:
            return await self._ask(after, count, 0)

    async def wait(self, lanes: Sequence[str], count: int) -> Streams | None:
        """New entries of any of the lanes, at most `count` of each, as soon as there are some; none after a while.

        None: the server refused to read them with others', for the sake of any of these lanes, and gave nothing out. To
        read one's own alone tells whether it was for theirs.

        Raises:
            RedisError: as for `read`.
        """
        if self._apart:
            return await self._ask(dict.fromkeys(lanes, ">"), count, self._block_ms)
        waiter = _Waiter(lanes, count, asyncio.get_running_loop().create_future())
        if not self._gathered:
            self._spawn(self._gather())
        self._gathered.append(waiter)
        try:
            return await waiter.entries
        except asyncio.CancelledError:
            await self._give_up(waiter)
            raise

    async def close(self) -> None:
        """Close all connections."""
        for task in list(self._tasks):
            await end_task(task)
        await self._close_free()

    # -- many in one read -----------------------------------------------------------------------------------

    async def _gather(self) -> None:
        await asyncio.sleep(0)  # those whose reads have just timed out are about to wait again
        gathered, self._gathered = self._gathered, []
        for start in range(0, len(gathered), _TOGETHER):
            together = gathered[start : start + _TOGETHER]
            reading = self._spawn(self._serve(together))
            # Not by the task itself: it may be cancelled before its first step.
            reading.add_done_callback(partial(_tell, together))
            for waiter in together:
                waiter.reading = reading

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, together: Sequence[_Waiter]) -> None:
        """Read until the time is over. Who has entries waits no more; the others are asked for again at once."""
        waiting, ends_ms = list(together), self._next_end_ms()
        while waiting:
            lanes = [lane for waiter in waiting for lane in waiter.lanes]
            count = min(waiter.count for waiter in waiting)
            left_ms = ends_ms - _now_ms()
            found = dict(await self._ask(dict.fromkeys(lanes, ">"), count, left_ms)) if left_ms > 0 else {}
            for waiter in list(waiting):
                streams = [(key, found[key]) for lane in waiter.lanes if (key := lane.encode()) in found]
                if streams or not found:
                    settle(waiter.entries, streams)
                    waiting.remove(waiter)

    def _next_end_ms(self) -> int:
        """When all such reads end, so that those who then go on waiting do so together."""
        return (_now_ms() // self._block_ms + 1) * self._block_ms

    async def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._gathered:
            self._gathered.remove(waiter)
        elif waiter.reading is not None:
            await end_task(waiter.reading)

    # -- connections ----------------------------------------------------------------------------------------

    async def _ask(self, after: Mapping[str, str], count: int, block_ms: int) -> Streams:
        block: tuple[str | int, ...] = ("BLOCK", block_ms) if block_ms else ()
        async with self._connection() as client, translated(f"reading {len(after)} lanes, {next(iter(after))} first"):
            found = await execute(
                client,
                *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, *block, "STREAMS"),
                *after,
                *after.values(),
            )
        return [stream for stream in found or () if stream[1]]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[redis.asyncio.Redis]:
        """A connection for one read. It is closed if that fails, as its reply may still come, and so are the others
        that are free: whatever broke one has broken them, too."""
        client = self._free.pop()[1] if self._free else reads(self._url, block_ms=self._block_ms)
        try:
            yield client
        except BaseException:
            await _close(client)
            await self._close_free()
            raise
        now_s = time.monotonic()
        self._free.append((now_s, client))
        if self._free[0][0] < now_s - _UNUSED_S:
            await _close(self._free.pop(0)[1])

    async def _close_free(self) -> None:
        while self._free:
            await _close(self._free.pop()[1])


def _tell(together: Sequence[_Waiter], reading: asyncio.Task[None]) -> None:
    """Let nobody wait for a read that is over."""
    for waiter in together:
        settle(waiter.entries, _end_of(reading))


def _end_of(reading: asyncio.Task[None]) -> BaseException | None:
    """What a read's end means to whoever has no entries from it: None, that the server refused it."""
    if reading.cancelled():
        return RedisUnavailableError("reading lanes: given up with another's read")
    error = reading.exception()
    refused = isinstance(error, RedisError) and isinstance(error.__cause__, ResponseError)
    return None if refused else error


def _now_ms() -> int:
    return int(time.monotonic() * 1000)


async def _close(client: redis.asyncio.Redis) -> None:
    with suppress(Exception):
        await client.aclose()
