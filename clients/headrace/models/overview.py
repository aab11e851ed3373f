"""How much work each model has, at one glance: the lanes, what is delivered, and the audit.

One round trip for any number of models. The audit is one atomic step on the server; the lanes are counted
right after it and may be a job or two further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace import scripts
from headrace.keys import GROUP, LANES, keys_of
from headrace.messages.job import PRIORITIES, Priority
from headrace.scripts import Audit
from headrace.server.connection import execute_together, translated

__all__ = ["LaneLoad", "ModelOverview", "read_overviews"]

_REPLIES: Final = 1 + 2 * LANES


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """The jobs of one lane."""

    priority: Priority
    live: int
    delivered: int
    """Of the live ones, those that a router took and that have no answer yet."""

    @property
    def waiting(self) -> int:
        """Jobs that no router took yet."""
        return max(0, self.live - self.delivered)


@dataclass(frozen=True, slots=True)
class ModelOverview:
    """One model's jobs."""

    model: str
    audit: Audit
    lanes: tuple[LaneLoad, ...]

    @property
    def waiting(self) -> int:
        """Jobs that no router took yet."""
        return sum(lane.waiting for lane in self.lanes)

    @property
    def delivered(self) -> int:
        """Jobs that a router took and that have no answer yet."""
        return sum(lane.delivered for lane in self.lanes)


async def read_overviews(client: redis.asyncio.Redis, models: Sequence[str]) -> list[ModelOverview]:
    """The overview of each model, in order.

    Raises:
        RedisError: it cannot be read.
    """
    async with translated("reading the lanes"):
        try:
            replies = await _ask(client, models)
        except NoScriptError:
            await client.script_load(scripts.AUDIT.text)
            replies = await _ask(client, models)
    return [_parse(model, replies[n * _REPLIES : (n + 1) * _REPLIES]) for n, model in enumerate(models)]


async def _ask(client: redis.asyncio.Redis, models: Sequence[str]) -> list[Any]:
    requests: list[tuple[str | int, ...]] = []
    for model in models:
        keys = keys_of(model)
        requests.append(("EVALSHA", scripts.AUDIT.sha, 1, keys.prefix))
        for lane in keys.lanes:
            requests += [("XLEN", lane), ("XPENDING", lane, GROUP)]
    return await execute_together(client, requests)


def _parse(model: str, replies: Sequence[Any]) -> ModelOverview:
    live = [int(reply) for reply in replies[1::2]]
    delivered = [int(reply[0]) for reply in replies[2::2]]
    lanes = (  # a priority's lanes, of all parts of the tenants, as one
        LaneLoad(priority, live=sum(live[n::3]), delivered=sum(delivered[n::3]))
        for n, priority in enumerate(PRIORITIES)
    )
    return ModelOverview(model, Audit.from_reply(replies[0]), tuple(lanes))
