"""The Redis server's clock, as this process can tell it without asking each time.

Deadlines are kept in the server's time, since the clocks of producers, routers and replicas differ. Between
two looks at the server this process counts with its own monotonic clock, so that a jump of the system clock
on either side is forgotten at the next look.
"""

from __future__ import annotations

import time

import redis.asyncio

from headrace.server.connection import execute_near, translated

__all__ = ["ServerClock"]


class ServerClock:
    """Seconds since the epoch, on the server. Until the first `look`, this machine's own time.

    Args:
        near: a key; of a cluster, the node that has it is the one whose clock counts.
    """

    def __init__(self, near: str = "") -> None:
        self._near = near
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """The time on the server, to within half a round trip of the last look."""
        return time.monotonic() + self._offset_s

    def now_ms(self) -> int:
        """The same, in whole milliseconds."""
        return int(self.now_s() * 1000)

    async def look(self, client: redis.asyncio.Redis) -> None:
        """Ask the server.

        Raises:
            RedisError: it does not answer.
        """
        before = time.monotonic()
        async with translated("asking the server for its time"):
            seconds, microseconds = await execute_near(client, self._near, "TIME")
        middle = (before + time.monotonic()) / 2
        self._offset_s = _seconds(seconds, microseconds) - middle


def _seconds(seconds: bytes | int, microseconds: bytes | int) -> float:
    return int(seconds) + int(microseconds) / 1e6
