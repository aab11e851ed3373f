"""A hot model in parts: `m#0`, `m#1` …, each with lanes, records and counters of its own.

All keys of a name lie in one slot of a Redis Cluster, and so on one node of it. A model with more work than a node can
take is therefore hosted under several names, its shards. A job's id says in which of them it is, so that an id is known
where it was submitted before; replicas are shared by all.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio

from headrace.errors import DecodeError, ShardedModelError
from headrace.keys import keys_of
from headrace.server.connection import execute, translated

__all__ = ["Shards", "model_of", "require_one", "shard_names", "shard_of"]

_REMEMBERED_S: Final = 10.0
_SIGN: Final = "#"


def shard_of(model: str, job_id: str, shards: int) -> str:
    """The name under which a job of a model goes: CRC-32 of its id, modulo the number of shards."""
    return model if shards < 2 else f"{model}{_SIGN}{zlib.crc32(job_id.encode()) % shards}"


def model_of(name: str) -> str:
    """The model of which a name may be a shard."""
    return name.partition(_SIGN)[0]


def shard_names(model: str, shards: int) -> list[str]:
    """All names of a model; its own where it has one shard."""
    return [model] if shards < 2 else [f"{model}{_SIGN}{number}" for number in range(shards)]


def require_one(model: str, names: Sequence[str]) -> None:
    """For what is done with one shard, such as reading an inbox: each has its own.

    Raises:
        ShardedModelError: `names`, all shards of the model, are several.
    """
    if len(names) > 1:
        raise ShardedModelError(
            f"{model} has {len(names)} shards, and this is done with one: name it, from {names[0]} to {names[-1]}"
        )


class Shards:
    """How many shards models have, as their services say; remembered for ten seconds.

    Args:
        client: of the server where they are registered.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._known: dict[str, tuple[int | None, float]] = {}
        self._asking = asyncio.Lock()

    async def count(self, model: str) -> int:
        """Shards of a model: one, unless its service says more, and of a shard itself."""
        if _SIGN in model:
            return 1
        if (count := self._remembered(model)) is not None:
            return count
        async with self._asking:  # one asks for all who want to know
            return self._remembered(model) or await self._ask(model)

    def _remembered(self, model: str) -> int | None:
        count, until_s = self._known.get(model, (None, 0.0))
        return count if time.monotonic() < until_s else None

    async def name(self, model: str, job_id: str) -> str:
        """The shard in which a job is."""
        return shard_of(model, job_id, await self.count(model))

    async def names(self, model: str) -> list[str]:
        """All shards of a model."""
        return shard_names(model, await self.count(model))

    async def sorted(self, model: str, job_ids: Sequence[str]) -> dict[str, list[str]]:
        """The ids of each shard's jobs."""
        count, found = await self.count(model), dict[str, list[str]]()
        for job_id in job_ids:
            found.setdefault(shard_of(model, job_id, count), []).append(job_id)
        return found

    async def require_one(self, model: str) -> None:
        """For what reads one inbox, of which each shard has its own.

        Raises:
            ShardedModelError: the model has several.
        """
        require_one(model, await self.names(model))

    async def _ask(self, model: str) -> int:
        async with translated(f"reading how many shards {model} has"):
            found: Any = await execute(self._client, "HMGET", keys_of(model).meta, "shards", "wire_version")
        try:
            count = int(found[0] or 1)
        except ValueError:
            raise DecodeError(f"the number of shards of {model} is {found[0]!r}") from None
        if any(found):  # what is not registered yet may be at any moment
            self._known[model] = count, time.monotonic() + _REMEMBERED_S
        return count
