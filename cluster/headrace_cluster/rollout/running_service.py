"""The service that runs in a Ray, as somebody outside sees and changes it.

Ray and Serve are asked and told; what there is to change, and whether, is decided elsewhere.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.api import _run
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from headrace.errors import HeadraceError, ModelLoadError
from headrace_cluster.app import application
from headrace_cluster.config.settings import ServiceConfig
from headrace_cluster.local import _why_not_deployed
from headrace_cluster.local_ray import left_address, require_ray
from headrace_cluster.redis_address import RedisAddress

__all__ = ["ApplyInProgressError", "NoServiceError", "Running", "RunningService", "connected"]

_ASK_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.2
_LOCK: Final = "headrace-apply"


class NoServiceError(HeadraceError):
    """No service of ours runs where it was looked for."""


class ApplyInProgressError(HeadraceError):
    """Somebody else changes the service at the moment."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a service was told."""

    generation: int
    config: ServiceConfig
    """Without the URL of Redis."""
    redis: RedisAddress
    declarative: bool
    """Whether a Serve config file, or KubeRay, says what it is: what anybody else changes would not last."""
    route_prefix: str | None


@contextmanager
def connected(app: str) -> Iterator[RunningService]:
    """The service of a name in the Ray at RAY_ADDRESS, or in that of `headrace serve` on this machine.

    Raises:
        NoServiceError: there is no Ray, or no such service in it.
    """
    address = os.environ.get("RAY_ADDRESS") or left_address()
    if address is None:
        raise NoServiceError("no service runs here: `headrace serve` is not running, and RAY_ADDRESS names no cluster")
    with ExitStack() as stack:
        try:
            require_ray(address)
            stack.callback(ray.shutdown)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            for name in ("ray.serve", "asyncio"):  # what goes wrong is said once, by us; probes are cut off at the end
                logging.getLogger(name).setLevel(logging.CRITICAL)
            client = _get_global_client(raise_if_no_controller_running=True)
        except (ConnectionError, RayError, RayServeException) as error:
            raise NoServiceError(f"no service runs in the Ray at {address}: {error}") from None
        yield RunningService(app, client)


class RunningService:
    """One application of ours. `connected` makes it."""

    def __init__(self, app: str, client: Any) -> None:
        self.app = app
        self._client = client

    def read(self) -> Running:
        """What it was told last.

        Raises:
            NoServiceError: Serve runs no application of this name, or it does not answer.
        """
        found = self._client.get_serve_details()["applications"]
        if self.app not in found:
            names = ", ".join(sorted(found)) or "none"
            raise NoServiceError(f"Serve runs no application {self.app!r}; it runs {names}")
        try:
            told = serve.get_app_handle(self.app).running.remote().result(timeout_s=_ASK_S)
        except (RayError, RayServeException, TimeoutError, AttributeError) as error:
            raise NoServiceError(f"the application {self.app!r} does not answer: {error}") from None
        return Running(
            told["generation"],
            ServiceConfig(**told["config"]),
            told["redis"],
            str(found[self.app]["source"]).lower().endswith("declarative"),
            found[self.app]["route_prefix"],
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes it meanwhile. The lock is an actor, which ends with this process at the latest.

        Raises:
            ApplyInProgressError: somebody changes it.
        """
        try:
            lock = ray.remote(_Lock).options(name=f"{_LOCK}-{self.app}", namespace=_LOCK, num_cpus=0).remote()
            ray.get(lock.held.remote(), timeout=_ASK_S)
        except (ValueError, RayError) as error:
            raise ApplyInProgressError(f"another `headrace apply` changes {self.app} at the moment: {error}") from None
        try:
            yield
        finally:
            ray.kill(lock)

    def deploy(
        self,
        config: ServiceConfig,
        generation: int | None,
        *,
        route_prefix: str | None,
        timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        """Have it be what a configuration says, and wait until it is, with nothing of the old left.

        Raises:
            ModelLoadError: a replica cannot be made; the words are those it ended with.
            TimeoutError: it is not ready in time; the message says what is missing.
        """
        _run(application(config, generation=generation), name=self.app, route_prefix=route_prefix, _blocking=False)
        deadline_s = time.monotonic() + timeout_s
        while True:
            status = serve.status().applications[self.app]
            if status.status == ApplicationStatus.RUNNING:
                return
            if status.status == ApplicationStatus.DEPLOY_FAILED:
                raise ModelLoadError(_why_not_deployed(self.app) or status.message)
            missing = [name for name, deployment in status.deployments.items() if deployment.status != "HEALTHY"]
            if time.monotonic() >= deadline_s:
                why = _why_not_deployed(self.app)
                raise TimeoutError(
                    f"{', '.join(missing)}: not ready after {timeout_s:g} s" + (f": {why}" if why else "")
                )
            say(f"exchanging: {', '.join(missing) or self.app}")
            time.sleep(_LOOK_EVERY_S)


class _Lock:
    """Stands as long as somebody changes a service."""

    def held(self) -> bool:
        """Answers when it stands."""
        return True
