"""Every metric of the service, declared once: its name, what it counts, in which unit, and by which labels.

Routers, replicas and the controller record only what is declared here; dashboards, alerts and documentation name only
what is declared here, and tests hold all of them to it. Ray's exporter puts `ray_` before each name. Units are those
of Prometheus: seconds, bytes, and things that are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["EXPORT_PREFIX", "METRICS", "Kind", "Metric"]

EXPORT_PREFIX: Final = "ray_"
"""What Ray's exporter puts before each name."""


class Kind(StrEnum):
    """What may happen to a metric's value."""

    COUNTER = "counter"
    """It only grows, from 0 at the start of its process."""
    GAUGE = "gauge"
    """It is what it is now."""
    HISTOGRAM = "histogram"
    """Values are counted by size."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    unit: str
    """`seconds`, `jobs`, `tokens`, …; `1` for a ratio or a flag."""
    labels: tuple[str, ...]
    help: str
    """One sentence, for people who look at a dashboard."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in its unit."""

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return EXPORT_PREFIX + self.name


_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0
)  # fmt: skip
_SHORT_SECONDS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0
)  # fmt: skip
_JOBS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
_TOKENS: Final = (
    16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0, 262144.0
)  # fmt: skip


def _gauge(name: str, unit: str, labels: str, text: str) -> Metric:
    return Metric(f"headrace_{name}", Kind.GAUGE, unit, tuple(labels.split()), text)


def _counter(name: str, unit: str, labels: str, text: str) -> Metric:
    return Metric(f"headrace_{name}_total", Kind.COUNTER, unit, tuple(labels.split()), text)


def _histogram(name: str, unit: str, labels: str, buckets: tuple[float, ...], text: str) -> Metric:
    return Metric(f"headrace_{name}", Kind.HISTOGRAM, unit, tuple(labels.split()), text, buckets)


_BACKLOG: Final = (
    _gauge("waiting_jobs", "jobs", "model priority", "Jobs in lanes that no router has taken yet."),
    _gauge("delivered_jobs", "jobs", "model", "Jobs that a router has taken and that have no answer yet."),
    _gauge("delayed_jobs", "jobs", "model", "Jobs that failed and wait for their next attempt."),
    _gauge(
        "dead_letters", "jobs", "model", "Jobs that were given up and are kept until somebody replays or drops them."
    ),
    _gauge("live_jobs", "jobs", "model", "Jobs that were submitted and have not ended."),
    _gauge(
        "audit_difference_jobs", "jobs", "model", "Jobs submitted, less those finished, less those live: 0, always."
    ),
    _gauge(
        "oldest_waiting_seconds", "seconds", "model", "How long the oldest job that no router has taken has waited."
    ),
    _gauge("backlog_work_seconds", "seconds", "model", "How long one replica would work on what waits, as predicted."),
)

_ROUTER_GAUGES: Final = (
    _gauge("router_held_jobs", "jobs", "model", "Jobs that a router holds: those that wait in it and those under way."),
    _gauge("in_flight_batches", "batches", "model", "Batches that replicas have and have not answered."),
    _gauge("replicas", "replicas", "model pool", "Replicas that a router can send batches to."),
    _gauge(
        "cost_error_ratio", "1", "model pool", "Recent mean error of predicted run times, relative to the actual ones."
    ),
    _gauge("redis_latency_seconds", "seconds", "", "How long Redis took to answer the router's last probe."),
    _gauge("lease_held", "1", "", "1 while the router's lease stands, else 0."),
    _gauge(
        "generation",
        "milliseconds",
        "model",
        "Generation of the application that reads the model's lanes, a Unix time.",
    ),
)

_SCALING: Final = (
    _gauge("replicas_wanted", "replicas", "pool reason", "Replicas that the autoscaler wants of a pool, and why."),
    _counter("scaling_decisions", "decisions", "pool direction", "Changes of a pool's wanted replicas, up or down."),
)

_REPLICA_GAUGES: Final = (
    _gauge("cold_start_seconds", "seconds", "model pool phase", "How long a replica's start took, by phase."),
    _gauge("kv_pages", "pages", "model state", "Pages of keys and values of a decoder: used, cached and free."),
    _gauge("running_sequences", "sequences", "model", "Sequences that a decoder computes together."),
)

_COUNTERS: Final = (
    _counter("read_jobs", "jobs", "model", "Jobs that routers read from lanes, repetitions included."),
    _counter("dispatched_jobs", "jobs", "model", "Jobs that routers sent to replicas, repetitions included."),
    _counter("answered_jobs", "jobs", "model", "Jobs whose terminal entry was written by a replica."),
    _counter("late_jobs", "jobs", "model", "Jobs that were computed although somebody else had answered them."),
    _counter("retried_jobs", "jobs", "model", "Jobs that failed and were handed back for another attempt later."),
    _counter("returned_jobs", "jobs", "model", "Jobs that were dispatched and came back without an answer."),
    _counter("expired_jobs", "jobs", "model", "Jobs whose deadline passed, or could not be met, before they ran."),
    _counter("cancelled_jobs", "jobs", "model", "Jobs that their producer called off before they were dispatched."),
    _counter("dead_lettered_jobs", "jobs", "model", "Jobs that were set aside because they failed alone on a replica."),
    _counter("refused_jobs", "jobs", "model", "Jobs that this service does not understand, answered with an error."),
    _counter("reaped_jobs", "jobs", "model", "Jobs that routers took over from routers that died."),
    _counter("batches", "batches", "model pool", "Batches that came back from replicas."),
    _counter("tokens", "tokens", "model pool", "Tokens that replicas computed."),
    _counter("padding_tokens_avoided", "tokens", "model", "Tokens of padding that packed batches did without."),
    _counter("replica_deaths", "replicas", "model", "Replicas that died, or were killed, with batches."),
    _counter(
        "hedged_batches", "batches", "model", "Batches that were sent to a second replica because the first was late."
    ),
)

_HISTOGRAMS: Final = (
    _histogram("wait_seconds", "seconds", "model", _SECONDS, "From a job's submission until it was dispatched."),
    _histogram("form_seconds", "seconds", "", _SHORT_SECONDS, "How long a router took to form a batch."),
    _histogram("run_seconds", "seconds", "model pool", _SECONDS, "How long an engine computed a batch."),
    _histogram("answer_seconds", "seconds", "model", _SECONDS, "How long a replica took to write a batch's answers."),
    _histogram("batch_jobs", "jobs", "model", _JOBS, "Jobs in a batch."),
    _histogram("batch_tokens", "tokens", "model", _TOKENS, "Tokens in a batch."),
    _histogram("first_token_seconds", "seconds", "model", _SECONDS, "From a generation's start until its first token."),
    _histogram(
        "inter_token_seconds", "seconds", "model", _SHORT_SECONDS, "Between two tokens of a generation, on average."
    ),
)  # fmt: skip

METRICS: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (*_BACKLOG, *_ROUTER_GAUGES, *_SCALING, *_REPLICA_GAUGES, *_COUNTERS, *_HISTOGRAMS)
}
"""All metrics, by name."""
