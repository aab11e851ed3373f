"""Whether Ray is there, its nodes alive, Serve's deployments healthy, and the replicas of a configuration fit on it.

`judge_ray` is pure. Asking takes a connection as a driver, which is closed at the end; no Ray is ever started.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.doctor import Diagnosis, Level
from headrace_cluster.config.pools import PoolConfig
from headrace_cluster.config.settings import ServiceConfig

__all__ = ["DeploymentFacts", "NodeFacts", "RayFacts", "examine_ray", "judge_ray"]

_SUBJECT: Final = "ray"
_WELL: Final = ("HEALTHY", "RUNNING")
_UNDER_WAY: Final = ("UPDATING", "UPSCALING", "DOWNSCALING", "DEPLOYING", "NOT_STARTED", "DELETING")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node."""

    name: str
    alive: bool
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """One deployment of Serve, or a whole application."""

    name: str
    status: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class RayFacts:
    """A cluster at one moment."""

    version: str
    nodes: Sequence[NodeFacts]
    deployments: Sequence[DeploymentFacts] = ()


def judge_ray(facts: RayFacts, config: ServiceConfig | None = None) -> Iterator[Diagnosis]:
    """What is to be said of a cluster, and of a configuration on it."""
    alive = [node for node in facts.nodes if node.alive]
    cpus, gpus = sum(node.cpus for node in alive), sum(node.gpus for node in alive)
    yield Diagnosis(_SUBJECT, Level.OK, f"Ray {facts.version}: {len(alive)} nodes, {cpus:g} cores, {gpus:g} GPUs")
    yield from _deployments(facts.deployments)
    if config is not None:
        yield from _room(alive, config)


def _deployments(deployments: Sequence[DeploymentFacts]) -> Iterator[Diagnosis]:
    for deployment in deployments:
        if deployment.status in _WELL:
            continue
        passing = deployment.status in _UNDER_WAY
        message = " ".join(deployment.message.split())[:300]
        yield Diagnosis(
            _SUBJECT,
            Level.WARN if passing else Level.ERROR,
            f"{deployment.name} is {deployment.status}" + (f": {message}" if message else ""),
            "replicas of it are being started or stopped" if passing else "its model has too few replicas, or none",
            "serve status; ray logs; if it lasts, replicas cannot be placed: ray status",
        )


def _room(alive: Sequence[NodeFacts], config: ServiceConfig) -> Iterator[Diagnosis]:
    """Whether each replica fits on a node, and all of them together on all nodes."""
    pools = [(f"{name}@{pool.name}", pool) for name, hosted in config.models.items() for pool in hosted.own_pools]
    pools += [(f"@{name}", pool) for name, pool in config.shared_pools.items()]
    for name, pool in pools:
        if not any(node.cpus >= pool.cpus and node.gpus >= pool.gpus for node in alive):
            yield Diagnosis(
                _SUBJECT,
                Level.WARN,
                f"no node has the {pool.cpus:g} cores and {pool.gpus:g} GPUs of a replica of {name}",
                "it is never started, unless an autoscaler brings such a node",
                f"ray status; a larger node, or fewer cpus and gpus for the pool {name}",
            )
    routers = config.router.replicas * config.router.cpus
    cpus = routers + sum(_least(pool) * pool.cpus for _name, pool in pools)
    gpus = sum(_least(pool) * pool.gpus for _name, pool in pools)
    if cpus > sum(node.cpus for node in alive) or gpus > sum(node.gpus for node in alive):
        yield Diagnosis(
            _SUBJECT,
            Level.WARN,
            f"routers and the least replicas of all pools take {cpus:g} cores and {gpus:g} GPUs, more than there are",
            "some of them are never started, unless an autoscaler brings nodes",
            "ray status; more nodes, fewer replicas, or fewer cpus for each",
        )


def _least(pool: PoolConfig) -> int:
    """Replicas that are always there."""
    least = getattr(pool, "min_replicas", None)
    return pool.replicas if least is None else int(least)


def examine_ray(address: str | None, config: ServiceConfig | None) -> list[Diagnosis]:
    """Connect to a cluster, ask, and judge. It never raises, and starts no Ray.

    Args:
        address: as `ray.init` takes it; None: what RAY_ADDRESS names, else a cluster on this machine.
        config: the service that runs there, or is to.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        return list(judge_ray(_facts(ray), config))
    except (ConnectionError, RuntimeError, OSError, TimeoutError, ValueError) as error:
        return [_away(address, error)]
    finally:
        if mine:
            with suppress(Exception):
                ray.shutdown()


def _away(address: str, error: Exception) -> Diagnosis:
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "ersion mismatch" in str(error):
        fix = "install what the cluster has: pip install 'ray[serve]==<its version>', and the same Python"
        return Diagnosis(_SUBJECT, Level.ERROR, message, "nothing that runs here can join that cluster", fix)
    where = "on this machine" if address == "auto" else f"at {address}"
    why = "nothing can be said of nodes and replicas; jobs wait in Redis"
    fix = "headrace serve, or --ray-address; in a pod of the cluster: kubectl exec <pod> -- headrace doctor"
    return Diagnosis(_SUBJECT, Level.WARN, f"no Ray cluster is reachable {where}: {message[:200]}", why, fix)


def _facts(ray: Any) -> RayFacts:
    nodes = [
        NodeFacts(
            name=str(node.get("NodeManagerAddress", "")),
            alive=bool(node.get("Alive")),
            cpus=float(node.get("Resources", {}).get("CPU", 0)),
            gpus=float(node.get("Resources", {}).get("GPU", 0)),
            labels=dict(node.get("Labels") or {}),
        )
        for node in ray.nodes()
    ]
    return RayFacts(str(ray.__version__), nodes, _served())


def _served() -> list[DeploymentFacts]:
    """What Serve says of its applications; nothing where it does not run."""
    from ray import serve

    found: list[DeploymentFacts] = []
    for name, application in serve.status().applications.items():
        if str(application.status.value) not in _WELL:
            found.append(DeploymentFacts(f"application {name}", str(application.status.value), application.message))
        found += [
            DeploymentFacts(deployment, str(told.status.value), told.message)
            for deployment, told in application.deployments.items()
        ]
    return found
