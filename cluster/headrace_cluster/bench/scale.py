"""`headrace bench scale`: what is lost, or saved, as a service grows in replicas, routers, models and backlog."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ray
import redis

from headrace_cluster.bench.scale_autoscaling import measure_autoscaling
from headrace_cluster.bench.scale_fifo import FifoPlan, measure_fifo
from headrace_cluster.bench.scale_routing import RoutingPlan, measure_routing
from headrace_cluster.bench.scale_service import ServicePlan, measure_replicas, measure_routers

__all__ = ["PARTS", "run_scale"]

Say = Callable[[str], None]

PARTS: Final = ("replicas", "routers", "routing", "fifo", "autoscaling")


def run_scale(say: Say, *, quick: bool = False, only: str = "") -> dict[str, Any]:
    """Measure all parts, or one of `PARTS`.

    Args:
        say: is told what is being done.
        quick: a short look, at the ends of each axis.
        only: one part.

    Returns:
        Figures by name; those of several sizes by size, and in rows.
    """
    service = ServicePlan.quick() if quick else ServicePlan()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "replicas": lambda: measure_replicas(service, say),
        "routers": lambda: measure_routers(service, say),
        "routing": lambda: measure_routing(RoutingPlan.quick() if quick else RoutingPlan(), say),
        "fifo": lambda: measure_fifo(FifoPlan.quick() if quick else FifoPlan(), say),
        "autoscaling": lambda: _autoscaling(say),
    }
    figures: dict[str, Any] = {}
    for part in (only,) if only else PARTS:
        figures |= parts[part]()
    return figures | {"machine": _machine()}


def _autoscaling(say: Say) -> dict[str, Any]:
    say("autoscaling: from a burst to the raised target, and from no replica to the first answer")
    return {name: round(seconds, 3) for name, seconds in measure_autoscaling().items()}


def _machine() -> dict[str, Any]:
    """What the figures are of."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gibibytes": round(pages / (1 << 30), 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "redis_py": redis.__version__,
    }
