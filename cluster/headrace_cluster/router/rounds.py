"""Finding out, for all models of a router process at once, which of them have anything to see to.

A hundred models cost what one costs: a round is one round trip, whatever their number, and a model is only visited
when there is cause. Delayed jobs and requests to cancel are looked for in every round; every second one looks who
leads and who is dead as well. So nothing waits longer than if each model's router went round by itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import redis.asyncio

from headrace.errors import RedisError
from headrace.serving.due import Due, look_after, sweep_together
from headrace_cluster.router.upkeep import Upkeep

__all__ = ["Rounds"]

log = logging.getLogger("headrace.router")

_WHOLE_EVERY: Final = 2
"""Rounds from one that looks at generations and routers to the next."""
_MEASURE_EVERY: Final = 8
"""Rounds after which every model is swept, which measures how fast its jobs end."""


class Rounds:
    """The rounds over some models.

    Args:
        client: for commands; it tries none of them twice by itself.
        consumer: the name of the routers in the lanes' consumer groups.
        every_s: how long between two rounds.
    """

    def __init__(self, client: redis.asyncio.Redis, consumer: str, *, every_s: float) -> None:
        self._client = client
        self._consumer = consumer
        self._every_s = every_s
        self._upkeeps: list[Upkeep] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._upkeeps)

    def add(self, upkeep: Upkeep) -> None:
        """Look after a model from the next round on."""
        self._upkeeps.append(upkeep)

    def remove(self, upkeep: Upkeep) -> None:
        """Look after a model no more."""
        self._upkeeps.remove(upkeep)

    async def run(self) -> None:
        """Go round until cancelled. An outage of Redis is waited out."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._once()
            except RedisError as error:
                log.debug("a round over %d models: %s", len(self), error)

    async def _once(self) -> None:
        self._number += 1
        upkeeps = list(self._upkeeps)
        found = await look_after(
            self._client,
            self._consumer,
            [upkeep.watched for upkeep in upkeeps],
            whole=self._number % _WHOLE_EVERY == 0,
        )
        for upkeep, due in zip(upkeeps, found, strict=True):
            if upkeep in self._upkeeps:  # it may have left meanwhile
                upkeep.visit(due, self._number)
        measuring = self._number % _MEASURE_EVERY == 0
        swept = [upkeep.model for upkeep, due in zip(upkeeps, found, strict=True) if measuring or Due.DELAYED in due]
        await sweep_together(self._client, swept)
