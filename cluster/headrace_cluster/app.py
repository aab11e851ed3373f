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
from headrace.server_check import wait_for_server
from headrace.shards import shard_names
from headrace.tasks import end_task
from headrace_cluster.config_errors import describe
from headrace_cluster.health import health
from headrace_cluster.lease import Lease
from headrace_cluster.model_router import ModelRouter
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.serve_pool import JoinedPools, PoolReplica, ServePool
from headrace_cluster.settings import ModelConfig, PoolConfig, ServiceConfig, load_config

__all__ = ["BuildArgs", "RouterReplica", "application", "build", "pool_name"]


_QUIET: Final = LoggingConfig(enable_access_log=False)
"""Serve would write a line for each call, which is one for each batch."""

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


def application(config: ServiceConfig) -> Application:
    """The application of a checked configuration.

    Raises:
        ConfigError: it names no Redis.
    """
    if not config.redis_address:
        raise ConfigError("redis_url: is missing; set it in the file, or HEADRACE_REDIS_URL in the environment")
    pools = {
        pool_name(model, pool): _pool(config, model, hosted, pool)
        for model, hosted in config.models.items()
        for pool in hosted.pools
    }
    router = serve.deployment(RouterReplica).options(
        name="router",
        logging_config=_QUIET,
        num_replicas=config.router.replicas,
        ray_actor_options={"num_cpus": config.router.cpus},
        graceful_shutdown_timeout_s=config.router.drain_s + 5,
        health_check_period_s=1,
        health_check_timeout_s=10,
    )
    # Of the URL, only what hides itself may be an argument: Serve keeps arguments, and Ray shows environments.
    return router.bind(
        config.model_dump(mode="json", exclude_unset=True, exclude={"redis_url"}), config.redis_address, pools
    )


def pool_name(model: str, pool: PoolConfig) -> str:
    """The deployment's name: `minilm@cpu`."""
    return f"{model}@{pool.name}"


def _pool(config: ServiceConfig, model: str, hosted: ModelConfig, pool: PoolConfig) -> Application:
    deployment = serve.deployment(PoolReplica).options(
        name=pool_name(model, pool),
        num_replicas=pool.replicas,
        logging_config=_QUIET,
        # Routers count slots, and never send a replica more than its share of each of them.
        max_ongoing_requests=(hosted.jobs_per_replica or pool.batches_per_replica)
        * config.router.replicas
        * hosted.shards
        + 8,
        ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
        request_router_config=RequestRouterConfig(request_router_class="headrace_cluster.direct_router:DirectRouter"),
        graceful_shutdown_timeout_s=hosted.call_timeout_s,
        health_check_period_s=1,
        health_check_timeout_s=30,
    )
    return deployment.bind(model, hosted.engine, config.redis_address, pool.threads, pool.device)


class RouterReplica:
    """What Serve makes one actor of for each router: the routers of all models on one event loop."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, on the loop the routers will run on
        self, config: dict[str, Any], redis: RedisAddress, pools: dict[str, DeploymentHandle]
    ) -> None:
        checked, url = ServiceConfig(**config), redis.resolve()
        app, life = serve.get_replica_context().app_name, secrets.token_hex(4)
        self._drain_s = checked.router.drain_s
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
        self._routers = {
            name: ModelRouter(
                name,
                url,
                pool=JoinedPools(
                    {
                        pool.name: ServePool(app, pool_name(model, pool), pools[pool_name(model, pool)])
                        for pool in hosted.pools
                    }
                ),
                policy=hosted.to_policy(),
                lease=self._lease,
            )
            for name, model, hosted in named
        }
        self._tasks = {
            model: asyncio.create_task(self._route(router), name=f"router-{model}")
            for model, router in self._routers.items()
        }

    async def _route(self, router: ModelRouter) -> None:
        await asyncio.shield(self._server_fits)
        await router.run()

    async def check_health(self) -> None:
        """Raise if a model's router has ended by a fault; Serve starts another in our place."""
        for model, task in self._tasks.items():
            if task.done():
                error = task.exception()
                raise RuntimeError(f"the router of {model} ended: {error}") from error

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
        return health(await self.counts(), redis_answers=self._lease.held)

    async def __del__(self) -> None:
        for router in self._routers.values():
            router.stop()
        await end_task(self._server_fits)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await asyncio.wait(self._tasks.values())
        for task in self._tasks.values():
            await end_task(task)
        await self._lease.stop()
