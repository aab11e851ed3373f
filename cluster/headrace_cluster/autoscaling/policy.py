"""What Serve's controller asks how many replicas a pool shall have.

Each pool's deployment carries a `PoolPolicy`, pickled; in the controller all that belong to one application share one
`ScalingLoop`, so decisions are taken together. A restarted controller unpickles them and begins anew from what runs.
Serve's own delays and factors are set to do nothing. Its hook for whole applications would do as well, but it is to be
had in Serve's config files only, which would say everything twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from ray import cloudpickle
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from headrace_cluster.autoscaling.loops import loop_of
from headrace_cluster.autoscaling.plan import PoolPlan, ScalingPlan
from headrace_cluster.redis_address import RedisAddress

__all__ = ["PoolPolicy", "autoscaling_config"]

log = logging.getLogger("headrace.autoscaling")

_NAME: Final = "headrace_cluster.autoscaling.policy.PoolPolicy"
"""Whoever reads Serve's status imports this, and pickles it by value: so nothing in here may hold a lock."""


def autoscaling_config(plan: ScalingPlan, pool: PoolPlan, redis: RedisAddress, *, generation: str) -> AutoscalingConfig:
    """The part of a deployment's options that has its pool scale.

    Args:
        plan: all pools of the application.
        pool: the deployment's.
        redis: where the backlog is. It travels pickled, and Serve shows nothing of it.
        generation: tells this application from others of its name: Serve compares policies by what can be read of
            them, and would keep the old one.
    """
    policy = PoolPolicy(plan, pool.name, redis, generation)
    return AutoscalingConfig(
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        downscale_to_zero_delay_s=0.0,
        upscaling_factor=1.0,
        downscaling_factor=1.0,
        policy=AutoscalingPolicy(
            policy_function=_NAME,
            policy_kwargs={"generation": generation},
            _serialized_policy_def=cloudpickle.dumps(policy),
        ),
    )


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Answers Serve for one pool. It runs ten times a second on the controller's event loop: no wait, no error."""

    plan: ScalingPlan
    pool: str
    redis: RedisAddress
    generation: str

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state: what is remembered is in the loop."""
        target = context.target_num_replicas
        try:
            loop = loop_of(str(context.app_name), self.generation, self.plan, self.redis)
            return loop.replicas(self.pool, running=context.current_num_replicas, target=target), {}
        except Exception:  # Serve's controller would stop deciding anything
            log.exception("no decision for %s", self.pool)
            return target, {}
