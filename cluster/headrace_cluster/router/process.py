"""What the routers of a process have once for all their models: connections to Redis, rounds, and the time of day.

What each had for itself would cost a hundred models a hundred times what it costs one, most of it while nothing
happens. On a cluster rounds are each model's own: models on one node must not wait for another that does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from headrace.server.cluster_client import ClusterClient
from headrace.server.connection import BLOCK_MS, commands
from headrace.tasks import end_task
from headrace_cluster.router.lane_reads import LaneReads
from headrace_cluster.router.rounds import Rounds
from headrace_cluster.router.upkeep import Leaseholder, Upkeep

__all__ = ["Resident", "RouterProcess"]

log = logging.getLogger("headrace.router")

_TICK_S: Final = 0.25


class Resident(Protocol):
    """What a model's router is to its process."""

    upkeep: Upkeep

    def tick(self) -> None:
        """A quarter of a second has passed, more or less."""
        ...

    def fail(self, error: BaseException) -> None:
        """End, by a fault in here."""
        ...


class RouterProcess:
    """The home of some models' routers.

    Args:
        url: the Redis server.
        lease: of the consumer as which all of them read.
        every_s: how long between two rounds of upkeep.
        block_ms: how long a read waits at the server when there is nothing to read.
    """

    def __init__(self, url: str, lease: Leaseholder, *, every_s: float = 0.25, block_ms: int = BLOCK_MS) -> None:
        self.redis = commands(url)
        """For what is tried again."""
        self.redis_once = commands(url, retries=0)
        """For what is not: its caller tries again, or comes by once more."""
        self.lane_reads = LaneReads(url, lease.consumer, block_ms=block_ms)
        self._consumer = lease.consumer
        self._every_s = every_s
        self._residents: list[Resident] = []
        self._rounds: dict[str, Rounds] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clock: asyncio.Task[None] | None = None

    def join(self, resident: Resident) -> None:
        """Go round for a router, and tell it the time, until it leaves."""
        self._residents.append(resident)
        if self._clock is None:
            self._clock = asyncio.create_task(self._keep_time())
        key = self._company_of(resident)
        if key not in self._rounds:
            self._rounds[key] = Rounds(self.redis_once, self._consumer, every_s=self._every_s)
            self._tasks[key] = asyncio.create_task(self._go_round(key))
        self._rounds[key].add(resident.upkeep)

    async def leave(self, resident: Resident) -> None:
        """It has ended; what was done for it alone ends, too."""
        self._residents.remove(resident)
        key = self._company_of(resident)
        self._rounds[key].remove(resident.upkeep)
        ending = []
        if not len(self._rounds[key]):
            del self._rounds[key]
            ending.append(self._tasks.pop(key))
        if not self._residents and self._clock is not None:
            ending.append(self._clock)
            self._clock = None
        for task in ending:
            await end_task(task)

    async def close(self) -> None:
        """Close the connections; every router has left."""
        await self.lane_reads.close()
        await self.redis.aclose()
        await self.redis_once.aclose()

    def _company_of(self, resident: Resident) -> str:
        """Whose rounds are the router's, too."""
        return resident.upkeep.model if isinstance(self.redis_once, ClusterClient) else ""

    async def _go_round(self, key: str) -> None:
        try:
            await self._rounds[key].run()
        except Exception as error:  # a bug in here is everybody's
            for resident in list(self._residents):
                resident.fail(error)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for resident in list(self._residents):
                try:
                    resident.tick()
                except Exception as error:
                    resident.fail(error)
