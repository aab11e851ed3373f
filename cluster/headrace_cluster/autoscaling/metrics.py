"""What the autoscaler wants and why, as metrics."""

from __future__ import annotations

from collections.abc import Iterable

from headrace_cluster.autoscaling.autoscaler import Cause, Decision
from headrace_cluster.autoscaling.observation import Observation
from headrace_workers.telemetry.metering import Meter

__all__ = ["ScalingMeter"]


class ScalingMeter:
    """A listener of a `ScalingLoop`.

    Args:
        meter: where it records.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last: dict[str, tuple[int, Cause]] = {}

    def __call__(self, _seen: Observation, decisions: Iterable[Decision]) -> None:
        """Record a round's decisions."""
        for made in decisions:
            before, cause = self._last.get(made.pool, (made.before, made.cause))
            if cause != made.cause:  # else the pool would be seen to want both
                self._meter.set("headrace_replicas_wanted", 0, pool=made.pool, reason=cause)
            self._meter.set("headrace_replicas_wanted", made.replicas, pool=made.pool, reason=made.cause)
            if made.replicas != before:
                direction = "up" if made.replicas > before else "down"
                self._meter.add("headrace_scaling_decisions_total", pool=made.pool, direction=direction)
            self._last[made.pool] = made.replicas, made.cause
