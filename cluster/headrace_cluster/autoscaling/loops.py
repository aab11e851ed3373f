"""The scaling loops of this process: one for each generation of each application that Serve's controller asks about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import ray

from headrace.telemetry.structured_logs import configure_logs
from headrace_cluster.autoscaling.loop import ScalingLoop
from headrace_cluster.autoscaling.metrics import ScalingMeter
from headrace_cluster.autoscaling.placeable import Node
from headrace_cluster.autoscaling.plan import ScalingPlan
from headrace_cluster.redis_address import RedisAddress
from headrace_workers.telemetry.metering import meter_for

__all__ = ["loop_of"]

_MOST_LOOPS: Final = 64
"""How many are remembered; those that nobody asks have ended by themselves."""

_loops: dict[tuple[str, str], ScalingLoop] = {}
_loops_lock = threading.Lock()


def loop_of(app: str, generation: str, plan: ScalingPlan, redis: RedisAddress) -> ScalingLoop:
    """The one loop of an application's generation in this process."""
    with _loops_lock:
        found = _loops.get((app, generation))
        if found is None:
            if not logging.getLogger("headrace").hasHandlers():  # Serve's controller has none
                configure_logs(plan.logs.format, plan.logs.level)
            while len(_loops) >= _MOST_LOOPS:
                del _loops[next(iter(_loops))]
            meter = ScalingMeter(meter_for(enabled=plan.metrics))
            found = _loops[app, generation] = ScalingLoop(plan, redis, nodes=_nodes, listener=meter)
        return found


def _nodes() -> Sequence[Node]:
    return Node.living(ray.nodes())
