"""A whole service at one moment, read from Redis alone in a few round trips, and how fast it went between two of them.

Reading it takes the rights of a monitor. What only an admin may read, dead letters that is, is left out for others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

from headrace.errors import DecodeError, RedisError
from headrace.keys import keys_of
from headrace.models.dead_letters import DeadLetter
from headrace.models.overview import ModelOverview, read_overviews
from headrace.models.registry import registered_models
from headrace.models.routers import RouterSign, read_routers
from headrace.server.connection import execute, execute_near, execute_together, translated

__all__ = ["ModelSnapshot", "Pace", "PoolSnapshot", "ServiceSnapshot", "SnapshotReader", "Speedometer"]

_LETTERS: Final = 3
_COST, _VARIANT = "cost@", "variant@"


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool of one model, or one that several share. What is not known is None."""

    name: str
    """As its deployment is called: `model@pool`, or `@pool`."""
    replicas: int | None = None
    wanted: int | None = None
    status: str | None = None
    variant: str | None = None
    """What its replicas were told to run, if anything."""


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model."""

    overview: ModelOverview
    oldest_s: float | None
    """How long ago the oldest job was submitted that has no answer; None if there is none."""
    routers: Sequence[RouterSign] = ()
    pools: Sequence[PoolSnapshot] = ()
    letters: Sequence[DeadLetter] = ()
    """The last dead letters, the newest first."""
    batch_jobs: float | None = None
    """Jobs in a batch, on average since the router was started; None if nobody says."""
    batch_tokens: float | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self.overview.model


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """All models."""

    taken_s: float
    """By this process's monotonic clock."""
    time_ms: int
    """Unix time, by the server's clock."""
    latency_s: float
    """One round trip to the server."""
    memory_bytes: int
    models: Sequence[ModelSnapshot] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model's jobs come and go; None where nothing is known yet."""

    submitted_per_s: float | None = None
    finished_per_s: float | None = None
    drain_s: float | None = None
    """How long its live jobs will take if it goes on so; infinity if they grow."""


class Speedometer:
    """Paces, over the last seconds. Pure: it is given snapshots.

    Args:
        window_s: over how long to average.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()

    def add(self, snapshot: ServiceSnapshot) -> dict[str, Pace]:
        """The pace of each model at this snapshot, which is kept for later ones."""
        counts = {
            model.name: (model.overview.audit.submitted, model.overview.audit.finished) for model in snapshot.models
        }
        self._seen.append((snapshot.taken_s, counts))
        while len(self._seen) > 2 and self._seen[1][0] <= snapshot.taken_s - self._window_s:
            self._seen.popleft()
        return {model.name: self._pace(model) for model in snapshot.models}

    def _pace(self, model: ModelSnapshot) -> Pace:
        (then_s, then), (now_s, now) = self._seen[0], self._seen[-1]
        if model.name not in then or now_s <= then_s:
            return Pace()
        submitted, finished = (
            max(0, after - before) / (now_s - then_s)
            for before, after in zip(then[model.name], now[model.name], strict=True)
        )
        return Pace(submitted, finished, _drain_s(model.overview.audit.live, submitted, finished))


def _drain_s(live: int, submitted_per_s: float, finished_per_s: float) -> float:
    if not live:
        return 0.0
    return live / finished_per_s if finished_per_s > 0 and finished_per_s >= submitted_per_s else float("inf")


@dataclass(slots=True)
class SnapshotReader:
    """Takes snapshots.

    Args:
        client: of the server.
        names: which models; None: all that are registered.
    """

    client: redis.asyncio.Redis
    names: Sequence[str] | None = None
    _letters_refused: bool = field(default=False, init=False)

    async def read(self) -> ServiceSnapshot:
        """Read everything once.

        Raises:
            RedisError: it cannot be read.
        """
        names = self.names if self.names is not None else await registered_models(self.client)
        before = time.perf_counter()
        async with translated("asking Redis for its time"):
            seconds, microseconds = await execute_near(self.client, "", "TIME")
            latency_s = time.perf_counter() - before
            info = await execute(self.client, "INFO", "memory")
        time_ms = int(seconds) * 1000 + int(microseconds) // 1000
        models = await self._models(names, time_ms) if names else []
        return ServiceSnapshot(time.monotonic(), time_ms, latency_s, _memory(info), models)

    async def _models(self, names: Sequence[str], time_ms: int) -> list[ModelSnapshot]:
        overviews = await read_overviews(self.client, names)
        oldest = await self._oldest(overviews, time_ms)
        routers = await read_routers(self.client, names)
        async with translated("reading what is known of pools"):
            pools = await execute_together(self.client, [("HGETALL", keys_of(name).pools) for name in names])
        letters = await self._letters(overviews)
        return [
            ModelSnapshot(
                overview,
                oldest.get(overview.model),
                routers[overview.model],
                list(_pools(overview.model, known)),
                letters.get(overview.model, ()),
            )
            for overview, known in zip(overviews, pools, strict=True)
        ]

    async def _oldest(self, overviews: Sequence[ModelOverview], time_ms: int) -> dict[str, float]:
        """How old the oldest entry of each model's lanes is."""
        lanes = [
            (overview.model, lane)
            for overview in overviews
            if overview.audit.live > overview.audit.delayed
            for lane in keys_of(overview.model).lanes
        ]
        async with translated("looking at the lanes"):
            replies = await execute_together(self.client, [("XINFO", "STREAM", lane) for _model, lane in lanes])
        ages: dict[str, float] = {}
        for (model, _lane), reply in zip(lanes, replies, strict=True):
            if (submitted_ms := _first_ms(reply)) is not None:
                ages[model] = max(ages.get(model, 0.0), (time_ms - submitted_ms) / 1000, 0.0)
        return ages

    async def _letters(self, overviews: Sequence[ModelOverview]) -> dict[str, list[DeadLetter]]:
        """The last dead letters of those that have some, if they may be read."""
        names = [overview.model for overview in overviews if overview.audit.dead_letters]
        if not names or self._letters_refused:
            return {}
        requests = [("XREVRANGE", keys_of(name).dead_letters, "+", "-", "COUNT", _LETTERS) for name in names]
        try:
            async with translated("reading dead letters"):
                replies = await execute_together(self.client, requests)
        except RedisError as error:
            if not isinstance(error.__cause__, NoPermissionError | ResponseError):
                raise
            self._letters_refused = True
            return {}
        return {name: list(_parsed(rows)) for name, rows in zip(names, replies, strict=True)}


def _parsed(rows: Sequence[Any]) -> Iterator[DeadLetter]:
    for letter_id, fields in rows:
        flat = [part for pair in fields.items() for part in pair] if isinstance(fields, dict) else fields
        try:
            yield DeadLetter.read(letter_id, flat)
        except DecodeError:  # `headrace dlq list` says so; a view goes on
            continue


def _pools(model: str, known: Any) -> Iterator[PoolSnapshot]:
    """The pools that a model's hash tells of."""
    pairs: Mapping[bytes, bytes] = known if isinstance(known, dict) else dict(zip(known[::2], known[1::2], strict=True))
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in pairs.items()}
    names = {name.partition("@")[2] for name in fields if name.startswith((_COST, _VARIANT))}
    for name in sorted(names):
        yield PoolSnapshot(f"{model}@{name}", variant=fields.get(_VARIANT + name))


def _first_ms(reply: Any) -> int | None:
    """When the first entry of a stream was added, in Unix milliseconds; None if there is none."""
    fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    first = fields.get("first-entry", fields.get(b"first-entry"))
    return int(bytes(first[0]).partition(b"-")[0]) if first else None


def _memory(info: Any) -> int:
    return int(info.get("used_memory", 0)) if isinstance(info, dict) else 0
