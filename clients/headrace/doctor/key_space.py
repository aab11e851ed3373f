"""Whether what lies in Redis adds up: every job accounted for, every key bounded, every lane read by somebody.

`judge_model` is pure. Only names, counts and ages are read, never what is in a job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio
from redis.exceptions import NoPermissionError

from headrace.doctor.diagnosis import Diagnosis, Level
from headrace.errors import HeadraceError
from headrace.keys import EVERY_KEY, MODELS, keys_of
from headrace.messages.envelope import WIRE_VERSION
from headrace.models.overview import ModelOverview, read_overviews
from headrace.models.registry import registered_models
from headrace.models.routers import RouterSign, read_routers
from headrace.models.shards import model_of
from headrace.server.connection import commands, execute, execute_together, masters, translated

__all__ = ["ModelState", "examine_keys", "judge_model"]

_SUBJECT: Final = "keys"
_FULL: Final = 0.8
_MOST_KEYS: Final = 50_000
_AT_ONCE: Final = 1000
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is known of one model."""

    overview: ModelOverview
    meta: Mapping[str, str]
    """What its service registered: limits and wire version."""
    routers: Sequence[RouterSign]


def judge_model(state: ModelState) -> Iterator[Diagnosis]:
    """Everything that is wrong with a model's jobs."""
    name, audit = state.overview.model, state.overview.audit
    if audit.lost or audit.doubled:
        yield Diagnosis(
            _SUBJECT,
            Level.ERROR,
            f"{name}: {audit.lost} jobs are lost and {audit.doubled} answers doubled",
            "submitted is no longer finished plus live: keys were deleted, evicted, or lost in a crash",
            f"headrace status {name} --json; look for evictions, FLUSHALL and crashes without an append-only file",
        )
    yield from _version(name, state.meta)
    yield from _routers(state)
    yield from _room(state)


def _version(name: str, meta: Mapping[str, str]) -> Iterator[Diagnosis]:
    if (served := meta.get("wire_version")) not in (None, str(WIRE_VERSION)):
        yield Diagnosis(
            _SUBJECT,
            Level.WARN,
            f"{name} is served in wire version {served}, and this client speaks {WIRE_VERSION}",
            "a service answers jobs of a version that it does not know with an error",
            "upgrade the service first, then producers: pip install --upgrade headrace",
        )


def _routers(state: ModelState) -> Iterator[Diagnosis]:
    overview = state.overview
    dead = [router for router in state.routers if not router.alive and router.delivered]
    alive = [router for router in state.routers if router.alive]
    if dead and not alive:
        yield Diagnosis(
            _SUBJECT,
            Level.ERROR,
            f"{overview.model}: {sum(router.delivered for router in dead)} jobs are in the hands of routers that died",
            "another router takes them over, and there is none",
            "headrace serve, or kubectl get rayservice; the jobs are taken up as soon as a router runs",
        )
    elif overview.waiting and not alive:
        yield Diagnosis(
            _SUBJECT,
            Level.ERROR,
            f"{overview.model}: {overview.waiting:,} jobs wait, and no router reads them",
            "no heartbeat of a router stands",
            "headrace serve, or kubectl get rayservice; `headrace top` shows routers as they come",
        )


def _room(state: ModelState) -> Iterator[Diagnosis]:
    overview, meta = state.overview, state.meta
    capacity = int(meta.get("lane_capacity", 0))
    for lane in overview.lanes:
        if capacity and lane.live >= _FULL * capacity:
            yield Diagnosis(
                _SUBJECT,
                Level.WARN,
                f"{overview.model}: its lanes of priority {lane.priority} hold {lane.live:,} of {capacity:,} jobs",
                "beyond that producers are told QueueFull",
                "more replicas, or a higher limits.lane_capacity (docs/configuration.md)",
            )
    letters, room = overview.audit.dead_letters, int(meta.get("dead_letter_capacity", 0))
    if letters:
        full = room and letters >= _FULL * room
        yield Diagnosis(
            _SUBJECT,
            Level.WARN,
            f"{overview.model}: {letters:,} dead letters" + (f", of at most {room:,}" if full else ""),
            "each is a job whose producer was told `dead`" + ("; beyond that the oldest go for good" if full else ""),
            f"headrace dlq list {overview.model}; then headrace dlq replay or headrace dlq drop",
        )


async def examine_keys(url: str) -> list[Diagnosis]:
    """Look at every model in a server, and at its keys. It never raises.

    Args:
        url: as `headrace.server.url` tells.
    """
    try:
        client = commands(url, retries=0)
    except HeadraceError:  # said by whoever looks at the server
        return []
    try:
        models = await registered_models(client)
        states = await _states(client, models)
        found = [diagnosis for state in states for diagnosis in judge_model(state)]
        return [_introduced(states), *found, *await _unbounded(client, models)]
    except HeadraceError as error:
        return [_unreadable(error)]
    finally:
        with suppress(Exception):
            await client.aclose()


def _unreadable(error: HeadraceError) -> Diagnosis:
    fix = "name a user of the profile monitor or admin in --redis-url: headrace acl monitor admin"
    return Diagnosis(_SUBJECT, Level.WARN, f"cannot be looked at: {error}", "what is wrong there is not seen", fix)


def _introduced(states: Sequence[ModelState]) -> Diagnosis:
    if not states:
        what = "no service has registered a model yet"
    else:
        live = sum(state.overview.audit.live for state in states)
        routers = {router.name for state in states for router in state.routers if router.alive}
        what = f"{len(states)} models, {live:,} live jobs, {len(routers)} living routers"
    return Diagnosis(_SUBJECT, Level.OK, what)


async def _states(client: redis.asyncio.Redis, models: Sequence[str]) -> list[ModelState]:
    overviews = await read_overviews(client, models)
    routers = await read_routers(client, models)
    async with translated("reading what is registered"):
        metas = await execute_together(client, [("HGETALL", keys_of(model).meta) for model in models])
    return [
        ModelState(overview, _text(meta), routers[overview.model])
        for overview, meta in zip(overviews, metas, strict=True)
    ]


def _text(reply: Any) -> dict[str, str]:
    """A hash as text, whether the client has made a dict of it or not."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs}


async def _unbounded(client: redis.asyncio.Redis, models: Sequence[str]) -> list[Diagnosis]:
    """Keys of ours that stand for ever and are not on the permanent list."""
    names = {*models, *map(model_of, models)}
    permanent = {MODELS}.union(*(keys_of(name).permanent for name in names))
    try:
        async with translated("looking through the keys"):
            found = [key for node in await masters(client) for key in await _without_ttl(node, permanent)]
    except HeadraceError as error:
        if isinstance(error.__cause__, NoPermissionError):
            return []  # a monitor may not list keys, nor should it
        raise
    if not found:
        return []
    shown = ", ".join(sorted(found)[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
    return [
        Diagnosis(
            _SUBJECT,
            Level.WARN,
            f"{len(found)} keys have no TTL and are not on the permanent list: {shown}",
            "they stay for ever: leftovers of models that are gone, or keys of others",
            f"look at each (redis-cli TYPE '{sorted(found)[0]}'), then redis-cli UNLINK",
        )
    ]


async def _without_ttl(node: redis.asyncio.Redis, permanent: set[str]) -> list[str]:
    found: list[str] = []
    cursor, seen = 0, 0
    while True:
        reply = await execute(node, "SCAN", cursor, "MATCH", EVERY_KEY, "COUNT", _AT_ONCE)
        cursor, keys = int(reply[0]), [key.decode("utf-8", "replace") for key in reply[1]]
        seen += len(keys)
        candidates = [key for key in keys if key not in permanent and not _is_of_a_job(key)]
        ttls = await execute_together(node, [("PTTL", key) for key in candidates]) if candidates else []
        found += [key for key, ttl in zip(candidates, ttls, strict=True) if ttl == -1]
        if not cursor or seen >= _MOST_KEYS:
            return found


def _is_of_a_job(key: str) -> bool:
    """Whether a key goes with its job: a record gets its TTL when the job ends, the others go with it."""
    return key.partition("}:")[2][:2] in ("j:", "d:", "s:")
