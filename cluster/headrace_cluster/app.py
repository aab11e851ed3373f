"""The Serve application: one deployment of routers, and one of replicas for each pool of each model.

`build` is what a Serve config file or a RayService names::

    applications:
      - name: headrace
        import_path: headrace_cluster.app:build
        route_prefix: null
        args: {config: /etc/headrace/config.yaml}
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from headrace.errors import ConfigError
from headrace.models.shards import model_of, shard_names
from headrace.server.check import wait_for_server
from headrace.tasks import end_task
from headrace_cluster.autoscaling.deployments import PoolOptions, actor_options
from headrace_cluster.config.errors import describe
from headrace_cluster.config.models import ModelConfig
from headrace_cluster.config.pools import PoolConfig
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.observability.instruments import Instruments
from headrace_cluster.observability.router_exporter import RouterExporter
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_cluster.pools.serve_pool import JoinedPools, PoolReplica, ServePool
from headrace_cluster.pools.shared_pool import HostReplica, SharedPool, told_of
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.rollout.deployment_version import version_of
from headrace_cluster.rollout.diff import routers_part
from headrace_cluster.router.collector import settle
from headrace_cluster.router.generation import GenerationFence
from headrace_cluster.router.health import health
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.router.process import RouterProcess

__all__ = ["BuildArgs", "RouterReplica", "application", "build", "pool_name"]


_QUIET: Final = LoggingConfig(enable_access_log=False)
"""Serve would write a line for each call, which is one for each batch."""

_SPARE_CALLS: Final = 8
"""Calls of a replica that are no batches."""
_SERVER_ANSWERS_S = 5.0
"""How long a router that starts waits to learn whether its Redis fits."""


class BuildArgs(BaseModel):
    """The arguments of `build`: a configuration, by path or in place."""

    model_config = ConfigDict(extra="forbid")

    config: str | dict[str, Any]


def build(args: BuildArgs | dict[str, Any]) -> Application:
    """The application that a Serve config asks for. Serve hands its `args` over as the plain map it has read.

    Raises:
        ConfigError: the arguments or the configuration are wrong, or no Redis is named.
    """
    try:
        checked = BuildArgs.model_validate(args)
    except ValidationError as error:
        faults = ", ".join(words for _, words in describe(error, BuildArgs))
        raise ConfigError(f"args: {faults}") from None
    source = Path(checked.config) if isinstance(checked.config, str) else checked.config
    return application(load_config(source))


def application(config: ServiceConfig, *, generation: int | None = None) -> Application:
    """The application of a checked configuration.

    Args:
        config: what to host.
        generation: its number; None: what the configuration says, or now.

    Raises:
        ConfigError: it names no Redis.
    """
    if not config.redis_address:
        raise ConfigError("redis_url: is missing; set it in the file, or HEADRACE_REDIS_URL in the environment")
    options = PoolOptions(config, generation=secrets.token_hex(4))
    pools = {
        pool_name(model, pool): _pool(config, model, hosted, pool, options)
        for model, hosted in config.models.items()
        for pool in hosted.own_pools
    }
    pools |= {f"@{name}": _shared_pool(config, name, options) for name in config.shared_pools if config.sharing(name)}
    number = generation or config.generation or int(time.time() * 1000)
    told = config.model_dump(mode="json", exclude_unset=True, exclude={"redis_url"})
    router = serve.deployment(RouterReplica).options(
        name="router",
        version=version_of(number, routers_part(config), config.redis_address),
        _internal=True,  # that of the version: ours, by what it was made with
        user_config=told,
        max_surge_percent=100,
        logging_config=_QUIET,
        num_replicas=config.router.replicas,
        ray_actor_options=actor_options(config.router.cpus, 0, config.router.labels),
        graceful_shutdown_timeout_s=config.router.drain_s + 5,
        health_check_period_s=1,
        health_check_timeout_s=10,
    )
    # Of the URL, only what hides itself may be an argument: Serve keeps arguments, and Ray shows environments.
    return router.bind(told, config.redis_address, pools, number)


def pool_name(model: str, pool: PoolConfig) -> str:
    """The deployment's name: `minilm@cpu`."""
    return f"{model}@{pool.name}"


def _pool(
    config: ServiceConfig, model: str, hosted: ModelConfig, pool: PoolConfig, options: PoolOptions
) -> Application:
    arguments = (
        *(model, hosted.engine, config.redis_address, pool.threads, pool.device),
        *(pool.name, config.observability, hosted.adaptive.wanted if hosted.adaptive else None),
    )
    return _replicas(
        PoolReplica,
        arguments,
        name=pool_name(model, pool),
        pool=pool,
        options=options,
        # Routers count slots, and never send a replica more than its share of each of them.
        calls=(hosted.jobs_per_replica or pool.batches_per_replica) * config.router.replicas * hosted.shards,
        longest_call_s=hosted.call_timeout_s,
    )


def _shared_pool(config: ServiceConfig, name: str, options: PoolOptions) -> Application:
    pool, sharing = config.shared_pools[name], config.sharing(name)
    arguments = (
        *(config.redis_address, pool.threads, pool.device),
        *(pool.memory_bytes, name, config.observability),
    )
    # The parts of a replica that its models take of it together are one, whichever of them have them.
    most = max(hosted.jobs_per_replica or pool.batches_per_replica for hosted in sharing.values())
    return _replicas(
        HostReplica,
        arguments,
        name=f"@{name}",
        pool=pool,
        options=options,
        calls=most * config.router.replicas,
        longest_call_s=max(hosted.call_timeout_s for hosted in sharing.values()),
        told=told_of({model: hosted.engine for model, hosted in sharing.items()}),
    )


def _replicas(
    hosts: type[Any],
    arguments: tuple[Any, ...],
    *,
    name: str,
    pool: PoolConfig,
    options: PoolOptions,
    calls: int,
    longest_call_s: float,
    told: dict[str, Any] | None = None,
) -> Application:
    """The deployment of a pool's replicas.

    Args:
        hosts: what Serve makes one actor of for each replica.
        arguments: of its constructor.
        name: the deployment's.
        pool: its configuration.
        options: how pools are scaled and placed.
        calls: how many a replica has at once at most.
        longest_call_s: how long one may take.
        told: what replicas are told while they run, too; a change of it exchanges none.
    """
    deployment = serve.deployment(hosts).options(
        name=name,
        version=version_of(*arguments),
        _internal=True,
        user_config=told,
        max_surge_percent=100 if pool.update == "beside" else 0,
        **options.of(name, pool),
        logging_config=_QUIET,
        max_ongoing_requests=calls + _SPARE_CALLS,
        request_router_config=RequestRouterConfig(
            request_router_class="headrace_cluster.pools.direct_router:DirectRouter"
        ),
        graceful_shutdown_timeout_s=longest_call_s,
        health_check_period_s=1,
        health_check_timeout_s=30,
    )
    return deployment.bind(*arguments)


def _needed(config: ServiceConfig, model: str) -> frozenset[str]:
    """The pools that must have a replica before a router reads in place of an older generation's."""
    pools = zip(config.models[model].pools, config.pools_of(model), strict=True)
    return frozenset(named.shared or named.name for named, pool in pools if pool.bounds[0])


class RouterReplica:
    """What Serve makes one actor of for each router: the routers of all models, on one event loop, in one process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, on the loop the routers will run on
        self, config: dict[str, Any], redis: RedisAddress, pools: dict[str, DeploymentHandle], generation: int = 0
    ) -> None:
        checked, url = ServiceConfig(**config), redis.resolve()
        self._instruments = Instruments.set_up(checked.observability, "router")
        app, life = serve.get_replica_context().app_name, secrets.token_hex(4)
        self._config, self._redis, self._generation = config, redis, generation
        self._drain_s = checked.router.drain_s
        self._may_rest = checked.may_rest
        self._server_fits = asyncio.create_task(
            wait_for_server(url, checks=checked.redis.checks, durability=checked.redis.durability)
        )
        await asyncio.wait({self._server_fits}, timeout=_SERVER_ANSWERS_S)
        if self._server_fits.done():
            self._server_fits.result()  # the deployment fails with what it raises; a server that is away is waited for
        named = [
            (name, model, hosted)
            for model, hosted in checked.models.items()
            for name in shard_names(model, hosted.shards)
        ]
        self._lease = Lease(url, [name for name, _, _ in named], consumer=life)
        self._lease.start()
        self._process = RouterProcess(url, self._lease)
        ports = {name: ServePool(app, name, handle) for name, handle in pools.items()}
        shared = {
            name: SharedPool(JoinedPools({name: ports[f"@{name}"]}), batches_per_replica=pool.batches_per_replica)
            for name, pool in checked.shared_pools.items()
            if f"@{name}" in ports
        }
        self._routers = {
            name: ModelRouter(
                name,
                url,
                pool=shared[hosted.shared_pool]
                if hosted.shared_pool is not None
                else JoinedPools({pool.name: ports[pool_name(model, pool)] for pool in hosted.own_pools}),
                policy=hosted.to_policy(sharing=len(checked.sharing(hosted.shared_pool or ""))),
                lease=self._lease,
                fence=GenerationFence(generation, needs=_needed(checked, model), drain_s=checked.router.drain_s),
                watch=RouterWatch(name, self._instruments.meter, self._instruments.tracer),
                slots=None
                if hosted.shared_pool is None
                else shared[hosted.shared_pool].slots(
                    name,
                    model=model,
                    jobs_per_replica=hosted.jobs_per_replica,
                    wake=partial(self._wake, name),
                ),
                process=self._process,
            )
            for name, model, hosted in named
        }
        self._tasks = {
            model: asyncio.create_task(self._route(router), name=f"router-{model}")
            for model, router in self._routers.items()
        }
        exporter = RouterExporter(
            self._instruments.meter,
            url,
            self._routers,
            lease_held=lambda: self._lease.held,
            asks_redis=lambda: serve.get_replica_context().rank.rank == 0,
        )
        self._exporting = asyncio.create_task(exporter.run() if checked.metrics.enabled else asyncio.sleep(0))
        settle()

    def _wake(self, name: str) -> None:
        self._routers[name].wake()

    async def _route(self, router: ModelRouter) -> None:
        await asyncio.shield(self._server_fits)
        await router.run()

    async def check_health(self) -> None:
        """Raise if a model's router has ended by a fault; Serve starts another in our place."""
        for model, task in self._tasks.items():
            if task.done():
                error = task.exception()
                raise RuntimeError(f"the router of {model} ended: {error}") from error

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take over what changes while it runs: Serve calls it with the configuration, at the start and later."""
        self._config, checked = config, ServiceConfig(**config)
        for name, router in self._routers.items():
            model = name if name in checked.models else model_of(name)
            router.fence.needs = _needed(checked, model)
            router.set_limits(checked.models[model].limits)

    async def running(self) -> dict[str, Any]:
        """What it was told, and for each model whether its generation reads."""
        return {
            "generation": self._generation,
            "config": self._config,
            "redis": self._redis,
            "reads": {name: router.fence.leads for name, router in self._routers.items()},
        }

    async def counts(self) -> dict[str, dict[str, Any]]:
        """For each model, what its router did so far and holds now."""
        return {
            model: dataclasses.asdict(router.counts)
            | {
                "waiting": len(router.scheduler.former),
                "in_flight": router.scheduler.slots.in_flight,
                "replicas": router.scheduler.slots.replicas,
                "process_cpu_s": time.process_time(),
                "pid": os.getpid(),
            }
            for model, router in self._routers.items()
        }

    async def __call__(self, request: Request) -> Response:
        """Whether every model is served, over HTTP; where the application has a route."""
        return health(await self.counts(), redis_answers=self._lease.held, may_rest=self._may_rest)

    async def __del__(self) -> None:
        for router in self._routers.values():
            router.stop()
        await end_task(self._server_fits)
        await end_task(self._exporting)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await asyncio.wait(self._tasks.values())
        for task in self._tasks.values():
            await end_task(task)
        await self._process.close()
        await self._lease.stop()
        await asyncio.to_thread(self._instruments.close)
