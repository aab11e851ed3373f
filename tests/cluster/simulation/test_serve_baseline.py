"""Serve's autoscaler in the simulator does what Ray's own functions do, decision by decision."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from ray.serve import autoscaling_policy as of_ray
from ray.serve.config import AutoscalingConfig

from headrace_cluster.simulation.pools import SimulatedPool
from headrace_cluster.simulation.scaling import Load, ServeScaling
from headrace_cluster.simulation.trace import PoolTrace, ServeBaseline


def test_it_decides_as_ray_does() -> None:
    """On a load that jumps about, with replicas that are there at once and a window of one look."""
    spec = PoolTrace(min_replicas=0, max_replicas=30, start_up_s=0)
    config = AutoscalingConfig(
        min_replicas=0, max_replicas=30, target_ongoing_requests=4, upscale_delay_s=5, downscale_delay_s=20
    )
    settings = ServeBaseline(look_back_period_s=0.5, upscale_delay_s=5, downscale_delay_s=20)
    pool, draw = SimulatedPool("m", spec, lanes=1, replicas=2), random.Random(7)
    scaling, state, ongoing = ServeScaling(pool, settings, target=4), dict[str, Any](), 0
    for second in range(2000):
        now_s = float(second)
        if second % 40 == 0:
            ongoing = draw.choice((0, 0, 3, 20, 60, 300))
        theirs, state = _rays(config, pool, ongoing, state, now_s)
        ours = scaling.decide(now_s, Load(ongoing, 0, 0, 0.0)).get(pool.name, (pool.target, ""))[0]
        assert ours == theirs, f"at {now_s} s with {ongoing} requests and {pool.target} replicas"
        for replica in pool.scale(ours, now_s):
            pool.up(replica)


def _rays(
    config: AutoscalingConfig, pool: SimulatedPool, ongoing: int, state: dict[str, Any], now_s: float
) -> tuple[int, dict[str, Any]]:
    """As Ray's controller goes about it: the policy, then bounds, then delays."""
    running = len(pool.running)
    context: Any = SimpleNamespace(
        current_num_replicas=running,
        target_num_replicas=pool.target,
        total_num_requests=ongoing,
        config=config,
        policy_state=state,
    )
    wanted, _ = of_ray.replica_queue_length_autoscaling_policy(context)
    if not running and ongoing:
        return int(wanted), state
    wanted = of_ray._apply_scaling_factors(wanted, running, config)
    bounded = max(config.min_replicas, min(wanted, config.max_replicas))
    target, after = of_ray._apply_delay_logic(bounded, pool.target, config, state, _now=now_s)
    return int(target), dict(after)
