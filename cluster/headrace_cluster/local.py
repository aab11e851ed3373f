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
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from pydantic import SecretStr

import ray
from headrace.errors import HeadraceError
from headrace.server_check import check_server
from headrace_cluster.app import application
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.settings import ServiceConfig
from ray import serve

__all__ = ["LocalService"]

APP: Final = "headrace"
_READY_S: Final = 180.0
_OBJECT_STORE_BYTES: Final = 256 << 20


class LocalService:
    """Serve a configuration from this machine.

    Args:
        config: what to host.
        directory: where an embedded server keeps its data; None throws the data away at the end.
        fsync: of the embedded server.
        verbose: let Ray's and the replicas' logs through.

    Raises:
        RedisSetupError: an embedded server is needed and cannot be had, or the one that is named does not fit.
        RedisUnavailableError: the server that is named does not answer.
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
        self._server: EmbeddedServer | None = None
        if not config.redis_url.get_secret_value():
            self._server = EmbeddedServer(directory, fsync=fsync, die_with_parent=True)
            config = config.model_copy(update={"redis_url": SecretStr(self._server.url)})
        self.config = config
        self._verbose = verbose
        self._deployed = False

    @property
    def url(self) -> str:
        """The Redis that producers and consumers use."""
        return self.config.redis_url.get_secret_value()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        if self._server is not None:
            self._server.start()
        else:
            asyncio.run(
                check_server(self.url, checks=self.config.redis.checks, durability=self.config.redis.durability)
            )
        self._start_ray()
        serve.start(proxy_location="Disabled")
        self._deployed = True
        serve.run(application(self.config), name=APP, route_prefix=None)
        self._wait_until_ready()

    def _start_ray(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not self._verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        pools = [pool for hosted in self.config.models.values() for pool in hosted.pools]
        cpus = sum(pool.cpus * pool.replicas for pool in pools) + self.config.router.cpus * self.config.router.replicas
        ray.init(
            # What one machine has may be less than what the pools claim; here the claims are only bookkeeping.
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
            include_dashboard=False,
            log_to_driver=self._verbose,
            logging_level=logging.INFO if self._verbose else logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )

    def _wait_until_ready(self) -> None:
        wanted = {model: sum(pool.replicas for pool in hosted.pools) for model, hosted in self.config.models.items()}
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if ray.is_initialized():
            # Deleting lets routers finish what they hold; Serve's controller then goes with its Ray.
            if self._deployed:
                serve.delete(APP)
            ray.shutdown()
        if self._server is not None:
            self._server.stop()
