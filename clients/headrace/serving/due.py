"""What many models have in common: being looked after by one router process, in one round trip for all of them.

On one server a single call of DUE (`lua/due.lua`) tells which of the models have anything to see to. On a cluster the
models' keys lie in slots of their own, which no script may span, so each model has a call, and the calls to one node
travel together.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Any, Final, NamedTuple

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace.keys import keys_of
from headrace.scripts import DUE, MAX_JOBS, SWEEP, Script
from headrace.server.cluster_client import ClusterClient
from headrace.server.connection import execute_together, translated

__all__ = ["Due", "Watched", "look_after", "sweep_together"]

_NOTHING: Final = "-"

Words = list[bytes | str | int]


class Due(IntFlag):
    """What a model has for its router to see to."""

    CANCELS = 1
    """Requests to cancel that were not read yet."""
    DELAYED = 2
    """Delayed jobs that are to go back to their lanes."""
    LEADER = 4
    """Another generation leads, or the leading one gives no sign of life."""
    DEAD = 8
    """A consumer of its lanes has no heartbeat."""


class Watched(NamedTuple):
    """A model, and what its router knows of it."""

    model: str
    leader: int | None
    """The generation that led when it was last asked."""
    cancels_after: str
    """The entry id behind which requests to cancel are read; empty: from the first."""


async def look_after(
    client: redis.asyncio.Redis, consumer: str, watched: Sequence[Watched], *, whole: bool
) -> list[Due]:
    """What each of the models has to be seen to, as a router's consumer sees it.

    Args:
        client: of the server.
        consumer: the router's, which is no reason for anything.
        watched: the models.
        whole: whether to look for `Due.LEADER` and `Due.DEAD` as well.

    Raises:
        RedisError: it cannot be told of one of them.
    """
    at_once = 1 if isinstance(client, ClusterClient) else MAX_JOBS
    parts = [watched[start : start + at_once] for start in range(0, len(watched), at_once)]
    calls = [(keys_of(part[0].model).prefix, _words(consumer, part, whole)) for part in parts]
    return [Due(code) for codes in await _call_together(client, DUE, calls) for code in codes]


def _words(consumer: str, watched: Sequence[Watched], whole: bool) -> Words:
    words: Words = [consumer, int(whole)]
    for model, leader, after in watched:
        words += (keys_of(model).prefix, _NOTHING if leader is None else leader, after or _NOTHING)
    return words


async def sweep_together(client: redis.asyncio.Redis, models: Sequence[str]) -> None:
    """SWEEP each of the models.

    Raises:
        RedisError: some were not, perhaps.
    """
    if models:
        await _call_together(client, SWEEP, [(keys_of(model).prefix, [MAX_JOBS]) for model in models])


async def _call_together(client: redis.asyncio.Redis, script: Script, calls: Sequence[tuple[str, Words]]) -> list[Any]:
    """Run a script for several keys, each with its arguments. The replies stand in order."""
    requests = [("EVALSHA", script.sha, 1, prefix, *words) for prefix, words in calls]
    async with translated(f"script {script.name}"):
        try:
            return await execute_together(client, requests)
        except NoScriptError:
            await client.script_load(script.text)
            return await execute_together(client, requests)
