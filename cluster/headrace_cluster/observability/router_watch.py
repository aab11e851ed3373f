"""What is recorded of each batch as it passes through a router.

The hot path is watched by the batch, never by the job: a record costs 3 µs, a job 50. So waiting times are those of a
few jobs of each batch, and what is only counted is recorded now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.telemetry.tracing import NO_TRACER, Tracer
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.slots.ledger import pool_of
from headrace_workers.telemetry.metering import NO_METER, Meter

__all__ = ["RouterWatch"]

_WAITS_OF_BATCH: Final = 4
"""Of how many jobs of a batch the waiting time is recorded, evenly spread over it."""


@dataclass(slots=True)
class _Counted:
    """Of one pool, since it was last recorded."""

    batches: int = 0
    tokens: int = 0
    padding_avoided: int = 0

    def add(self, batches: int, tokens: int, padding_avoided: int) -> None:
        """Count more."""
        self.batches += batches
        self.tokens += tokens
        self.padding_avoided += padding_avoided


class RouterWatch:
    """Watches the router of one model.

    Args:
        model: its name.
        meter: where metrics go.
        tracer: where the spans of traced jobs go.
    """

    def __init__(self, model: str, meter: Meter = NO_METER, tracer: Tracer = NO_TRACER) -> None:
        self._model = model
        self._meter = meter
        self._tracer = tracer
        self._enabled = meter is not NO_METER
        self._counts: dict[str, _Counted] = {}

    def formed(self, form_s: float) -> None:
        """It took the scheduler so long to choose a batch and its place."""
        self._meter.observe("headrace_form_seconds", form_s)

    def dispatched(self, jobs: Sequence[WaitingJob], replica: str, now_ms: int) -> None:
        """A batch is on its way. `now_ms` is the Redis server's clock."""
        if self._tracer.enabled:
            self._trace_waits(jobs, replica, now_ms)
        if not self._enabled:
            return
        self._meter.observe("headrace_batch_jobs", len(jobs), model=self._model)
        for job in jobs[:: -(-len(jobs) // _WAITS_OF_BATCH)]:
            waited_s = max(0.0, now_ms / 1000 - job.submitted_s)
            self._meter.observe("headrace_wait_seconds", waited_s, model=self._model)

    def _trace_waits(self, jobs: Sequence[WaitingJob], replica: str, now_ms: int) -> None:
        for job in jobs:
            if b" 00-" not in job.key.text:  # no trace context: most have none, and cost no more
                continue
            envelope = job.key.envelope
            self._tracer.record(
                "headrace.wait",
                envelope.traceparent,
                start_ms=envelope.submitted_ms,
                end_ms=now_ms,
                attributes={
                    "headrace.model": self._model,
                    "headrace.job_id": envelope.job_id,
                    "headrace.batch_jobs": len(jobs),
                    "headrace.replica": replica,
                },
            )

    def came_back(self, replica: str, tokens: Sequence[int], run_s: float) -> None:
        """A batch came back as a whole; a job that never ran has 0 tokens."""
        if not self._enabled:
            return
        pool, total, longest = pool_of(replica), sum(tokens), max(tokens, default=0)
        self._meter.observe("headrace_batch_tokens", total, model=self._model)
        self._meter.observe("headrace_run_seconds", run_s, model=self._model, pool=pool)
        self._counted(pool).add(1, total, longest * (len(tokens) - tokens.count(0)) - total)

    def streamed(self, replica: str, jobs: int) -> None:
        """All that was said of a batch whose jobs end one by one has been heard."""
        if self._enabled and jobs:
            self._counted(pool_of(replica)).add(1, 0, 0)

    def ended(self, replica: str, tokens: int) -> None:
        """A job ended that was generated: it took so many tokens, prompt and answer."""
        if self._enabled:
            self._counted(pool_of(replica)).add(0, tokens, 0)

    def _counted(self, pool: str) -> _Counted:
        found = self._counts.get(pool)
        if found is None:
            found = self._counts[pool] = _Counted()
        return found

    def flush(self) -> None:
        """Record what was counted since the last time."""
        meter, model = self._meter, self._model
        for pool, counted in self._counts.items():
            meter.add("headrace_batches_total", counted.batches, model=model, pool=pool)
            meter.add("headrace_tokens_total", counted.tokens, model=model, pool=pool)
            meter.add("headrace_padding_tokens_avoided_total", counted.padding_avoided, model=model)
            self._counts[pool] = _Counted()
