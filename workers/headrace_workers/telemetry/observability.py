"""How a service is watched: which metrics, traces and logs its processes give. Every process is told the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LogsConfig", "MetricsConfig", "Observability", "TracingConfig"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MetricsConfig(_Config):
    """What is counted and measured."""

    enabled: bool = True
    """Whether routers and replicas record metrics, which Ray exports from each node."""


class TracingConfig(_Config):
    """Spans of single jobs."""

    enabled: bool = False
    """Whether routers and replicas record spans of jobs whose producers trace them; needs `headrace[tracing]`."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of which share of the traces that producers have sampled the service records its own spans."""
    endpoint: Annotated[str, Field(max_length=4096, pattern=r"^(https?://.*)?$")] = ""
    """Where a collector takes spans by OTLP over HTTP: `http://collector:4318/v1/traces`. Empty: what the variables of
    OpenTelemetry say (`OTEL_EXPORTER_OTLP_ENDPOINT`), else this machine."""


class LogsConfig(_Config):
    """What the processes write."""

    format: Literal["text", "json"] = "text"
    """`json`: one object a line, with model, job and trace where they are known; never a job's content."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written."""


class Observability(_Config):
    """All of it, as routers, replicas and the controller are given it."""

    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    logs: LogsConfig = LogsConfig()
