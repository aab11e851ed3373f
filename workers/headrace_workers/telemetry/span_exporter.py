"""The tracer of a service: spans of routers and replicas, sent to a collector by OpenTelemetry's SDK.

It has a provider of its own, so that whatever else in the process traces (an engine of the user's, say) is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from headrace.errors import ConfigError
from headrace.telemetry.tracing import NO_TRACER, Attributes, SpanKind, Tracer, context_of, is_sampled, traceparent_of
from headrace_workers.telemetry.observability import TracingConfig

__all__ = ["SpanTracer", "make_tracer"]

_MISSING: Final = "tracing: needs OpenTelemetry; pip install 'headrace[tracing]'"


def make_tracer(config: TracingConfig, service: str) -> Tracer:
    """The tracer that a configuration asks for.

    Args:
        config: whether, how much and where to.
        service: which process this is, `headrace.router` say, as the spans' `service.name`.

    Raises:
        ConfigError: OpenTelemetry's SDK or its exporter is not installed.
    """
    if not config.enabled:
        return NO_TRACER
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(_MISSING) from None
    exporter = OTLPSpanExporter(endpoint=config.endpoint) if config.endpoint else OTLPSpanExporter()
    return SpanTracer(BatchSpanProcessor(exporter), service, sample_ratio=config.sample_ratio)


class SpanTracer:
    """Records spans of sampled jobs.

    Args:
        processor: OpenTelemetry's, which gets each span that is over.
        service: the spans' `service.name`.
        sample_ratio: of which share of the sampled traces the service records its own spans. It goes by the trace's
            id: routers and replicas choose the same ones.
    """

    enabled = True

    def __init__(self, processor: Any, service: str, *, sample_ratio: float = 1.0) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=True)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headrace")
        self._below = round(sample_ratio * (1 << 64))

    def wants(self, traceparent: str) -> bool:
        """Whether the producer has sampled it, and so has the service."""
        # The lower half of the trace's id is random, by the W3C's word.
        return is_sampled(traceparent) and int(traceparent[19:35], 16) < self._below

    def record(
        self,
        name: str,
        parent: str,
        *,
        start_ms: float,
        end_ms: float,
        attributes: Attributes,
        links: Sequence[str] = (),
        kind: SpanKind = "INTERNAL",
    ) -> str:
        """Record a span that is over; of a job that is not wanted, nothing."""
        if parent and not self.wants(parent):
            return ""
        span = self._tracer.start_span(
            name,
            context=context_of(parent) if parent else self._trace.set_span_in_context(self._trace.INVALID_SPAN),
            kind=self._trace.SpanKind[kind],
            attributes=dict(attributes),
            links=[self._link(link) for link in links],
            start_time=round(start_ms * 1e6),
        )
        span.end(round(max(start_ms, end_ms) * 1e6))
        return traceparent_of(span.get_span_context())

    def _link(self, traceparent: str) -> Any:
        return self._trace.Link(self._trace.get_current_span(context_of(traceparent)).get_span_context())

    def close(self) -> None:
        """Send what is still here."""
        self._provider.shutdown()
