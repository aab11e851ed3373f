"""What is recorded of each batch and of each generation in a replica, and of the replica itself.

Batches are measured, jobs are not: a record costs 3 µs. Spans are recorded of traced jobs alone, when their batch is
over: each job's `headrace.run` and `headrace.answer` lie in the trace of its producer and name the batch's own span,
which has a trace of its own and names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headrace.messages import Envelope
from headrace.telemetry.tracing import NO_TRACER, Tracer
from headrace_workers.generation.pages import PagePool
from headrace_workers.telemetry.metering import NO_METER, Meter

__all__ = ["BatchTimes", "ReplicaWatch"]


class BatchTimes(NamedTuple):
    """When the stages of a batch were over, in seconds of the Redis server's clock."""

    came_s: float
    run_from_s: float
    run_to_s: float
    answered_s: float


class ReplicaWatch:
    """Watches one replica.

    Args:
        pool: its pool's name; empty outside of a service.
        meter: where metrics go.
        tracer: where spans go.
    """

    def __init__(self, pool: str = "", meter: Meter = NO_METER, tracer: Tracer = NO_TRACER) -> None:
        self._pool = pool
        self._meter = meter
        self._tracer = tracer

    def answered(self, model: str, envelopes: Sequence[Envelope], times: BatchTimes, variant: str) -> None:
        """A batch's answers are written."""
        self._meter.observe("headrace_answer_seconds", max(0.0, times.answered_s - times.run_to_s), model=model)
        if self._tracer.enabled:
            self._trace(model, envelopes, times, variant)

    def _trace(self, model: str, envelopes: Sequence[Envelope], times: BatchTimes, variant: str) -> None:
        traced = [envelope for envelope in envelopes if self._tracer.wants(envelope.traceparent)]
        if not traced:
            return
        about: dict[str, str | int] = {
            "headrace.model": model,
            "headrace.pool": self._pool,
            "headrace.variant": variant,
            "headrace.batch_jobs": len(envelopes),
        }
        batch = self._tracer.record(
            "headrace.batch",
            "",
            start_ms=times.came_s * 1000,
            end_ms=times.answered_s * 1000,
            attributes=about,
            links=[envelope.traceparent for envelope in traced],
        )
        for envelope in traced:
            self._stages(envelope, about | {"headrace.job_id": envelope.job_id}, times, links=[batch])

    def _stages(
        self, envelope: Envelope, about: Mapping[str, str | int], times: BatchTimes, links: Sequence[str] = ()
    ) -> None:
        for name, start_s, end_s in (
            ("headrace.run", times.run_from_s, times.run_to_s),
            ("headrace.answer", times.run_to_s, times.answered_s),
        ):
            self._tracer.record(
                name, envelope.traceparent, start_ms=start_s * 1000, end_ms=end_s * 1000, attributes=about, links=links
            )

    def generated(
        self, model: str, envelope: Envelope, *, times: BatchTimes, first_token_s: float, tokens: int, variant: str
    ) -> None:
        """A generation's ending is written.

        Args:
            model: whose.
            envelope: the job's.
            times: of the job alone.
            first_token_s: when it had its first token; 0 if it never had one.
            tokens: how many it generated.
            variant: of the engine.
        """
        if first_token_s:
            first_s = max(0.0, first_token_s - times.run_from_s)
            self._meter.observe("headrace_first_token_seconds", first_s, model=model)
            if tokens > 1:
                between_s = max(0.0, times.run_to_s - first_token_s) / (tokens - 1)
                self._meter.observe("headrace_inter_token_seconds", between_s, model=model)
        self._meter.observe("headrace_answer_seconds", max(0.0, times.answered_s - times.run_to_s), model=model)
        if self._tracer.wants(envelope.traceparent):
            about = {"headrace.model": model, "headrace.pool": self._pool, "headrace.variant": variant}
            self._stages(envelope, about | {"headrace.job_id": envelope.job_id, "headrace.tokens": tokens}, times)

    # -- what is, again and again: an exporter forgets gauges that nobody repeats ------------------------------

    def started(self, model: str, phases_s: Mapping[Any, float]) -> None:
        """How long the replica's start took, by phase."""
        for phase, seconds in phases_s.items():
            self._meter.set("headrace_cold_start_seconds", seconds, model=model, pool=self._pool, phase=str(phase))

    def generating(self, model: str, sequences: int, pages: object) -> None:
        """How many sequences a decoder computes, and its pages of keys and values, if it has such."""
        self._meter.set("headrace_running_sequences", sequences, model=model)
        if isinstance(pages, PagePool):
            used, free = pages.held, pages.free
            for state, count in (("used", used), ("cached", max(0, pages.pages - used - free)), ("free", free)):
                self._meter.set("headrace_kv_pages", count, model=model, state=state)
