"""A whole service on one machine: server, Ray, routers and replicas, for as long as a context lasts.

`headrace serve`, the demo, the benchmarks and the tests run it. It is the application that production runs,
on a Ray of its own, with an embedded Redis where the configuration names none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from headrace.errors import ConfigError, HeadraceError, ModelLoadError
from headrace.models.shards import shard_names
from headrace.server.check import check_server
from headrace_cluster.app import application
from headrace_cluster.autoscaling.placeable import Node, why_unplaceable
from headrace_cluster.config.settings import ServiceConfig
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.interrupts import sigterm_interrupts
from headrace_cluster.local_ray import address_left, local_ray, while_ray_lives

__all__ = ["LocalService"]

log = logging.getLogger("headrace")

APP: Final = "headrace"
_READY_S: Final = 180.0


class LocalService:
    """Serve a configuration from this machine.

    While it lasts, SIGTERM interrupts the main thread as Ctrl-C does, so that both leave the context in order.

    Args:
        config: what to host.
        directory: where an embedded server keeps its data; None throws the data away at the end, and leaves no word
            for `headrace apply` of where its Ray is.
        fsync: of the embedded server.
        verbose: let Ray's and the replicas' logs through.

    Entering raises:
        RedisError: the server that is named does not answer or does not fit, or an embedded one cannot be had.
        ConnectionError: there is no Ray where RAY_ADDRESS says, or this process is connected to one already.
        ModelLoadError: a model cannot be loaded.
        ConfigError: a pool asks for what this machine does not have.
        HeadraceError: the replicas are not ready in time.
    """

    def __init__(
        self,
        config: ServiceConfig,
        *,
        directory: Path | None = None,
        fsync: Literal["always", "everysec"] = "everysec",
        verbose: bool = False,
    ) -> None:
        self.config = config
        self._directory = directory
        self._fsync: Literal["always", "everysec"] = fsync
        self._verbose = verbose
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """The Redis that producers and consumers use."""
        return self.config.redis_address.resolve()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.enter_context(sigterm_interrupts())
            self._find_models()
            self._have_redis(starting)
            starting.enter_context(local_ray(self._cpus(), verbose=self._verbose))
            if self._directory is not None and "RAY_ADDRESS" not in os.environ:
                starting.enter_context(address_left())
            self._find_nodes()
            starting.enter_context(self._serving())
            self._wait_until_ready()
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _find_models(self) -> None:
        """Look for every model's files, before anything is started that would only fail on them."""
        from headrace_workers.models.source import find_source

        for name, hosted in self.config.models.items():
            if hosted.engine.kind == "encoder":
                try:
                    find_source(hosted.engine.model)
                except HeadraceError as error:
                    raise type(error)(f"models.{name}: {error}") from error

    def _have_redis(self, starting: ExitStack) -> None:
        """Start a server if none is named, and make sure that it fits before routers wait for it."""
        if not self.config.redis_address:
            server = starting.enter_context(EmbeddedServer(self._directory, fsync=self._fsync, die_with_parent=True))
            self.config = self.config.model_copy(update={"redis_url": SecretStr(server.url)})
        asked = self.config.redis
        asyncio.run(check_server(self.url, checks=asked.checks, durability=asked.durability))

    def _cpus(self) -> int:
        """What the pools and routers claim; this machine may have less, and here claims are only bookkeeping."""
        router = self.config.router
        pools = sum(pool.cpus * pool.bounds[1] for pool in self.config.pools.values())
        beside = 2 if self._directory is not None else 1  # what is changed while it runs starts beside what it replaces
        return math.ceil(pools + router.cpus * router.replicas) * beside

    def _find_nodes(self) -> None:
        """Refuse a pool that this machine can never hold; a cluster that others run may still grow."""
        nodes = Node.living(ray.nodes())
        for name, pool in self.config.pools.items():
            why = why_unplaceable(pool.cpus, pool.gpus, pool.labels, nodes)
            if why and "RAY_ADDRESS" in os.environ:
                log.warning("pool %s: no node can hold a replica: %s", name, why)
            elif why:
                raise ConfigError(
                    f"pool {name}: no node can hold a replica: {why}. Take the pool out, or serve from a cluster that"
                    " has such nodes (RAY_ADDRESS)"
                )

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """The application, from its deployment until it is deleted, which lets routers finish what they hold."""
        if not self._verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        try:
            _deploy(application(self.config), APP, quietly=not self._verbose)
            yield
        finally:
            while_ray_lives(_deleting(APP))

    def _wait_until_ready(self) -> None:
        wanted = {
            name: sum(pool.bounds[0] for pool in self.config.pools_of(model))
            for model, hosted in self.config.models.items()
            for name in shard_names(model, hosted.shards)
        }
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            counts = self.counts()
            if all(counts[model]["replicas"] >= wanted[model] for model in wanted):
                return
            time.sleep(0.02)
        raise HeadraceError(f"not all replicas are ready after {_READY_S:.0f} s")

    def counts(self) -> dict[str, dict[str, Any]]:
        """For each model, what one of the routers did so far and holds now."""
        counts: dict[str, dict[str, Any]] = serve.get_app_handle(APP).counts.remote().result(timeout_s=30)
        return counts


def _deleting(name: str) -> Iterator[None]:
    """Delete an application, step by step; its routers finish what they hold meanwhile.

    Not by `serve.delete`, which starts a new Ray if it finds none.
    """
    controller = _get_global_client()
    yield
    controller.delete_apps([name], blocking=False)
    yield
    while controller.get_serve_status(name).app_status.status != ApplicationStatus.NOT_STARTED:
        yield
        time.sleep(0.05)


def _deploy(app: serve.Application, name: str, *, quietly: bool) -> None:
    """Run an application; a replica that cannot be constructed is an error with the words that it ended with."""
    log, before = logging.getLogger("ray.serve"), logging.getLogger("ray.serve").level
    if quietly:
        log.setLevel(logging.CRITICAL)  # what fails is said once, by us
    try:
        serve.run(app, name=name, route_prefix=None)
    except RuntimeError as error:
        raise ModelLoadError(_why_not_deployed(name) or str(error)) from None
    finally:
        log.setLevel(before)


def _why_not_deployed(name: str) -> str:
    """What the replicas that failed said last, each deployment's in a sentence."""
    deployments = serve.status().applications[name].deployments
    return "; ".join(f"{name}: {_last_words(status.message)}" for name, status in deployments.items() if status.message)


def _last_words(message: str) -> str:
    """What the error at the end of a replica's traceback says; one that is not ours keeps its name."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [line.partition(": ")[2] for line in lines if line.startswith("headrace.errors.")]
    return (ours or lines)[-1]
