"""Traces: one for each job, from whoever submitted it to whoever has its answer, in OpenTelemetry's terms.

A producer's program that has set OpenTelemetry up puts its trace context into its jobs (W3C `traceparent`, a word of
the envelope), and the answer brings it to the consumer. Routers and replicas record spans of those jobs alone whose
producer has sampled them; of all others they look at one word. Nothing here imports OpenTelemetry unless the service
was told to trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol

from headrace.messages.result import Result

__all__ = [
    "NO_TRACER",
    "Attributes",
    "NoTracer",
    "SpanKind",
    "Tracer",
    "context_of",
    "is_sampled",
    "received",
    "submitting",
    "traceparent_of",
]

Attributes = Mapping[str, str | int | float | bool]
SpanKind = Literal["INTERNAL", "PRODUCER", "CONSUMER"]

_NAME: Final = "headrace"
_LENGTH: Final = 55
"""Of a traceparent of version 00."""


def is_sampled(traceparent: str) -> bool:
    """Whether a job is part of a trace that is recorded, by its producer's word."""
    return len(traceparent) == _LENGTH and traceparent[-2:] in _SAMPLED


_SAMPLED: Final = frozenset(f"{high}{low}" for high in "0123456789abcdef" for low in "13579bdf")
"""The flags whose lowest bit is set."""


class Tracer(Protocol):
    """Records spans of jobs, which begin and end in different processes: so a span is recorded when it is over."""

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded at all."""
        ...

    def wants(self, traceparent: str) -> bool:
        """Whether spans of this job are recorded."""
        ...

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
        """Record a span, unless nobody wants it.

        Args:
            name: of the stage.
            parent: the job's traceparent; empty for a span that belongs to several jobs, and has a trace of its own.
            start_ms: when it began, in Unix milliseconds.
            end_ms: when it was over.
            attributes: what is to be known of it; never of a job's content.
            links: traceparents of spans that it has to do with.
            kind: OpenTelemetry's.

        Returns:
            Its own traceparent; empty if it was not recorded.
        """
        ...

    def close(self) -> None:
        """Send what was recorded, and record nothing more."""
        ...


class NoTracer:
    """Records nothing."""

    enabled = False

    def wants(self, traceparent: str) -> bool:
        """Never."""
        return False

    def record(self, name: str, parent: str, **_: Any) -> str:
        """Do nothing."""
        return ""

    def close(self) -> None:
        """Do nothing."""


NO_TRACER: Final = NoTracer()


def _api() -> Any:
    """OpenTelemetry's tracing interface, if it is loaded: redis-py does that where it is installed."""
    return sys.modules.get("opentelemetry.trace")


@contextmanager
def submitting(jobs: int) -> Iterator[str]:
    """A span around handing jobs over, and the traceparent for those that have none; empty outside of any trace."""
    api = _api()
    if api is None:
        yield ""
        return
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider):  # nobody records; a context may come from elsewhere all the same
        yield traceparent_of(api.get_current_span().get_span_context())
        return
    tracer = provider.get_tracer(_NAME)
    attributes = {"messaging.system": _NAME, "messaging.batch.message_count": jobs}
    with tracer.start_as_current_span("headrace.submit", kind=api.SpanKind.PRODUCER, attributes=attributes) as span:
        yield traceparent_of(span.get_span_context())


def received(result: Result) -> None:
    """A span, at the end of a job's trace, for the moment in which its answer was in the consumer's hands."""
    api = _api()
    if api is None or not is_sampled(result.traceparent):
        return
    api.get_tracer(_NAME).start_span(
        "headrace.receive",
        context=context_of(result.traceparent),
        kind=api.SpanKind.CONSUMER,
        attributes={
            "headrace.model": result.model,
            "headrace.job_id": result.id,
            "headrace.status": str(result.status),
        },
    ).end()


def traceparent_of(context: Any) -> str:
    """A span's context as a job carries it; empty if it is none."""
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def context_of(traceparent: str) -> Any:
    """The context in which a span has that parent. Needs OpenTelemetry's interface."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
