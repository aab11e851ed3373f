"""What `headrace top` shows besides Redis: replicas by pool, from Serve, and the shape of batches, from a router."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from headrace.models.snapshot import ModelSnapshot, PoolSnapshot, ServiceSnapshot

__all__ = ["PoolsSeen", "ServeWatcher", "watch"]

log = logging.getLogger("headrace.cli")

_ASK_S: Final = 5.0
_EVERY_S: Final = 2.0
_ROUTER: Final = "router"


@dataclass(frozen=True, slots=True)
class PoolsSeen:
    """What Serve and a router said."""

    pools: Mapping[str, PoolSnapshot]
    """By deployment."""
    counts: Mapping[str, Mapping[str, Any]]
    """By model: what the asked router has counted since it was started."""

    def complete(self, snapshot: ServiceSnapshot) -> ServiceSnapshot:
        """The snapshot, with what was said of each of its models."""
        return replace(snapshot, models=[self._complete(model) for model in snapshot.models])

    def _complete(self, model: ModelSnapshot) -> ModelSnapshot:
        told = {pool.name: pool for pool in model.pools}
        base = model.name.partition("#")[0]
        for name, pool in self.pools.items():
            if name.startswith(f"{base}@") or name in told:
                known = told.get(name)
                told[name] = replace(pool, variant=known.variant if known else None)
        counts = self.counts.get(model.name, {})
        batches = counts.get("batches", 0)
        return replace(
            model,
            pools=[told[name] for name in sorted(told)],
            batch_jobs=counts.get("dispatched", 0) / batches if batches else None,
            batch_tokens=counts.get("tokens", 0) / batches if batches and "tokens" in counts else None,
        )


class ServeWatcher:
    """A connection to a Ray cluster, as a driver. It asks every other second at most.

    Args:
        address: as `ray.init` takes it.

    Raises:
        ConnectionError: there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        import ray

        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        self._seen = PoolsSeen({}, {})
        self._due_s = 0.0

    def complete(self, snapshot: ServiceSnapshot) -> ServiceSnapshot:
        """The snapshot, with replicas and batches; with those of before where Serve does not answer."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _EVERY_S
            try:
                self._seen = _ask()
            except Exception as error:  # Ray has many, and the view goes on without it
                log.debug("asking Serve: %r", error)
        return self._seen.complete(snapshot)

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        if self._mine:
            ray.shutdown()


def _ask() -> PoolsSeen:
    from ray import serve

    pools: dict[str, PoolSnapshot] = {}
    counts: dict[str, Mapping[str, Any]] = {}
    for application, told in serve.status().applications.items():
        if _ROUTER not in told.deployments:
            continue
        for name, deployment in told.deployments.items():
            if "@" in name:
                states = {str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items()}
                pools[name] = PoolSnapshot(
                    name, states.get("RUNNING", 0), sum(states.values()), str(deployment.status.value).lower()
                )
        handle = serve.get_deployment_handle(_ROUTER, application)
        counts |= handle.counts.remote().result(timeout_s=_ASK_S)
    return PoolsSeen(pools, counts)


def watch(address: str) -> ServeWatcher:
    """What the entry point of the group `headrace.top` names.

    Raises:
        CommandError: there is no such cluster.
    """
    from headrace.cli.output import CommandError, Exit

    try:
        return ServeWatcher(address)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandError(
            f"no Ray cluster at {address}: {message}",
            code="ray_unavailable",
            hint="name another with --ray-address, or none: Redis tells the rest",
            status=Exit.UNAVAILABLE,
        ) from None
