"""What a pool's deployment is told of how many replicas it has, and on which nodes."""

from __future__ import annotations

from typing import Any

from headrace_cluster.autoscaling.planning import scaling_plan
from headrace_cluster.autoscaling.policy import autoscaling_config
from headrace_cluster.config.pools import PoolConfig
from headrace_cluster.config.settings import ServiceConfig

__all__ = ["PoolOptions", "actor_options"]


class PoolOptions:
    """The options of every pool of one application.

    Args:
        config: the service.
        generation: tells this application from others of its name.
    """

    def __init__(self, config: ServiceConfig, *, generation: str) -> None:
        self._redis = config.redis_address
        self._generation = generation
        self._plan = scaling_plan(config)
        self._pools = {pool.name: pool for pool in self._plan.pools}
        self._adaptive = {pool for model in self._plan.models if model.ladder is not None for pool in model.pools}
        """Pools whose variants the loop chooses: Serve asks for them too, though their size may be fixed."""

    def of(self, deployment: str, pool: PoolConfig) -> dict[str, Any]:
        """Serve's options for a pool: a fixed number of replicas, or a policy; and what a replica claims."""
        claims = {"ray_actor_options": actor_options(pool.cpus, pool.gpus, pool.labels)}
        if not pool.scales and deployment not in self._adaptive:
            return claims | {"num_replicas": pool.replicas}
        scaling = autoscaling_config(self._plan, self._pools[deployment], self._redis, generation=self._generation)
        return claims | {"autoscaling_config": scaling}


def actor_options(cpus: float, gpus: float, labels: dict[str, str]) -> dict[str, Any]:
    """What Ray is told of an actor's node."""
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
    return options | {"label_selector": dict(labels)} if labels else options
