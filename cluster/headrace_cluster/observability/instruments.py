"""What a process of the service records with, as its configuration says: logs, metrics and spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.telemetry.structured_logs import configure_logs
from headrace.telemetry.tracing import Tracer
from headrace_workers.telemetry.metering import Meter, meter_for
from headrace_workers.telemetry.observability import Observability
from headrace_workers.telemetry.span_exporter import make_tracer

__all__ = ["Instruments"]


@dataclass(frozen=True, slots=True)
class Instruments:
    """Where a process's metrics and spans go."""

    meter: Meter
    tracer: Tracer

    @classmethod
    def set_up(cls, asked: Observability, process: Literal["router", "replica", "controller"]) -> Instruments:
        """Set this process up, its logs included.

        Raises:
            ConfigError: tracing is asked for, and OpenTelemetry is not installed.
        """
        configure_logs(asked.logs.format, asked.logs.level)
        return cls(meter_for(enabled=asked.metrics.enabled), make_tracer(asked.tracing, f"headrace.{process}"))

    def close(self) -> None:
        """Record the values and send the spans that are still here."""
        self.meter.flush()
        self.tracer.close()
