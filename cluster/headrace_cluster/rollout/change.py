"""Changing a running service: what there is to do, in which order, and back again if it cannot be done.

1. Removed models are closed, and their jobs seen to as was asked.
2. The new application is deployed over the old; its routers read when their generation leads (`generation.py`).
3. What Redis keeps of removed models is deleted.

Until the second step all can be taken back. If it fails, the old configuration is deployed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import redis.asyncio

from headrace.errors import HeadraceError
from headrace.models.registry import close_model, open_model
from headrace.models.shards import model_of, shard_names
from headrace.server.connection import commands
from headrace_cluster.config.settings import ServiceConfig
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.rollout.diff import Change as Difference
from headrace_cluster.rollout.diff import ConfigDiff, Effect, diff_of
from headrace_cluster.rollout.removal import (
    Removed,
    bury_jobs,
    closed_models,
    forget_models,
    live_jobs,
    wait_until_empty,
)
from headrace_cluster.rollout.running_service import ApplyInProgressError, Running, RunningService

__all__ = ["ApplyError", "Change", "Plan"]

T = TypeVar("T")

_ADDRESS_FIELDS = ("url_file", "ca_file", "cert_file", "key_file")


class ApplyError(HeadraceError):
    """A change was not made, or was taken back.

    Args:
        message: what happened.
        code: the same, for programs.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, code: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be changed."""

    running: Running
    config: ServiceConfig
    diff: ConfigDiff
    live: dict[str, int]
    """Jobs of models that are removed."""

    def __bool__(self) -> bool:
        return bool(self.diff) or bool(self.diff.removed)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "changes": [asdict(change) for change in self.diff.changes],
            "removed": {model: self.live.get(model, 0) for model in self.diff.removed},
        }


class Change:
    """One change of a service.

    Args:
        service: what is changed.
        config: what it is to be. If it names no Redis, that stays as it is.
        removed: what becomes of the jobs of removed models.
        redis_url: the service's Redis as a user who may remove models; None: as the service itself.
        timeout_s: how long each step may take.
    """

    def __init__(
        self,
        service: RunningService,
        config: ServiceConfig,
        removed: Removed,
        *,
        redis_url: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._service = service
        self._config = config
        self._removed = removed
        self._redis_url = redis_url
        self._timeout_s = timeout_s

    def plan(self) -> Plan:
        """What there is to change. Changes nothing.

        Raises:
            NoServiceError: there is no such service.
            ApplyError: it is not for us to change.
            RedisError: Redis does not answer.
        """
        running = self._service.read()
        if running.declarative:
            raise ApplyError(
                f"{self._service.app} is what a Serve config file or a RayService says, and would be again",
                code="declarative",
                hint="change that file, or its `args`, and apply it: see docs/operations.md",
            )
        config = _with_address(self._config, running.redis)
        diff = _with_address_change(diff_of(running.config, config), running.redis, config.redis_address)
        return self._with_redis(running, lambda client: _plan(client, running, config, diff))

    def apply(self, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
        """Make the change; returns what came of it, for programs. Hold the service's lock meanwhile.

        Raises:
            ApplyInProgressError: the service is not what it was when the plan was made.
            ApplyError: nothing was changed, or all was taken back.
            RedisError: Redis does not answer.
        """
        running = plan.running
        if self._service.read() != running:
            raise ApplyInProgressError("the service was changed since the difference was looked at")
        self._with_redis(running, lambda client: self._prepare(client, plan, say))
        try:
            self._deploy(plan, say)
        except BaseException:
            self._with_redis(running, lambda client: _reopen(client, plan))
            raise
        outcomes = self._with_redis(running, lambda client: self._finish(client, plan, say))
        return {"generation": self._service.read().generation, "forgotten": outcomes}

    def _with_redis(self, running: Running, work: Callable[[redis.asyncio.Redis], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            client = commands(self._url(running))
            try:
                return await work(client)
            finally:
                await client.aclose()

        return asyncio.run(run())

    def _url(self, running: Running) -> str:
        return self._redis_url or running.redis.resolve()

    async def _prepare(self, client: redis.asyncio.Redis, plan: Plan, say: Callable[[str], None]) -> None:
        """Close what is to be removed, and see to its jobs."""
        gone = plan.diff.removed
        for model in gone:
            await close_model(client, model, generation=plan.running.generation)
        try:
            live = {} if self._removed is Removed.DEAD_LETTER else await live_jobs(client, gone)
            if self._removed is Removed.DRAIN:
                live = await wait_until_empty(client, gone, timeout_s=self._timeout_s, say=say)
            if live:
                raise _refusal(live, drained=self._removed is Removed.DRAIN)
        except BaseException:
            await _reopen(client, plan)
            raise
        for model, hosted in plan.config.models.items():
            for name in shard_names(model, hosted.shards):
                await open_model(client, name, hosted.limits)

    def _deploy(self, plan: Plan, say: Callable[[str], None]) -> None:
        running = plan.running
        if not plan.diff:  # only something that an earlier change left is to be removed
            return
        generation = running.generation if plan.diff.in_place else None
        options: dict[str, Any] = {"route_prefix": running.route_prefix, "timeout_s": self._timeout_s, "say": say}
        try:
            self._service.deploy(plan.config, generation, **options)
        except (HeadraceError, TimeoutError) as error:
            say("taking it back")
            with suppress(HeadraceError, TimeoutError):
                self._service.deploy(_with_address(running.config, running.redis), running.generation, **options)
            raise ApplyError(
                f"the new application cannot run, and the old one was put back: {error}",
                code="rolled_back",
                hint="correct the configuration; where new replicas have no room beside the old, set pools[].update "
                "to in_turn",
            ) from None

    async def _finish(self, client: redis.asyncio.Redis, plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
        """Set aside what is left, and forget the models."""
        gone = plan.diff.removed
        if self._removed is Removed.DEAD_LETTER:
            for model in gone:
                say(f"setting the jobs of {model} aside")
                try:
                    await bury_jobs(client, self._url(plan.running), model, timeout_s=self._timeout_s)
                except TimeoutError:
                    raise ApplyError(
                        f"some jobs of {model} are in somebody's hands still",
                        code="jobs_left",
                        hint="run the same command again",
                    ) from None
        served = [name for model, hosted in plan.config.models.items() for name in shard_names(model, hosted.shards)]
        outcomes = await forget_models(client, gone, served=served, timeout_s=self._timeout_s)
        return {model: outcome.name.lower() for model, outcome in outcomes.items()}


async def _plan(client: redis.asyncio.Redis, running: Running, config: ServiceConfig, diff: ConfigDiff) -> Plan:
    hosted = {name for model, of in config.models.items() for name in shard_names(model, of.shards)}
    left = await closed_models(client) - hosted
    diff = replace(diff, removed=tuple(sorted({*diff.removed, *left})))
    return Plan(running, config, diff, await live_jobs(client, diff.removed))


async def _reopen(client: redis.asyncio.Redis, plan: Plan) -> None:
    """Have the models take jobs again that are served still."""
    for name in plan.diff.removed:
        hosted = plan.running.config.models.get(name) or plan.running.config.models.get(model_of(name))
        if hosted is not None:
            await open_model(client, name, hosted.limits)


def _refusal(live: dict[str, int], *, drained: bool) -> ApplyError:
    jobs = ", ".join(f"{model} has {count:,} jobs" for model, count in live.items())
    if drained:
        return ApplyError(
            f"not drained in time, and nothing was changed: {jobs}",
            code="not_drained",
            hint="give a longer --timeout-s",
        )
    return ApplyError(
        f"nothing was changed, for models that would be removed have jobs: {jobs}",
        code="jobs_waiting",
        hint="--removed drain runs them first, --removed dead-letter keeps them to be replayed",
    )


def _with_address(config: ServiceConfig, address: RedisAddress) -> ServiceConfig:
    """The configuration with the address of the Redis that is used already, if it names none."""
    if config.redis_address:
        return config
    files = {name: getattr(address, name) for name in _ADDRESS_FIELDS if getattr(address, name) is not None}
    told = config.redis.model_copy(update=files) if files else config.redis
    return config.model_copy(update={"redis_url": address.url, "redis": told})


def _with_address_change(diff: ConfigDiff, old: RedisAddress, new: RedisAddress) -> ConfigDiff:
    if old.url == new.url:
        return diff
    return replace(diff, changes=(*diff.changes, Difference("redis_url", str(old), str(new), Effect.REPLICAS)))
