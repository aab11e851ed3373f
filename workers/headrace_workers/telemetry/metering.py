"""Where metrics are recorded: at Ray's exporter, where there is one; in memory, for tests; else nowhere.

A record costs 3 µs with Ray where the one before it was a moment ago, and ten times that, in caches that hold something
else by then, once a batch. So values of histograms are kept, and recorded many at once.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from headrace.telemetry.metric_names import METRICS, Kind, Metric

__all__ = ["NO_METER", "MemoryMeter", "Meter", "NoMeter", "RayMeter", "meter_for"]

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted."""
_AT_ONCE: Final = 64
"""Values of one series: what they take together is a quarter of a millisecond."""


class Meter(Protocol):
    """Records metrics of `headrace.telemetry.metric_names`. Labels are those that are declared there, all of them."""

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Have a counter grow by `amount`; one that never grew is 0 from the first time on."""
        ...

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Say what a gauge is now."""
        ...

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Count a value in a histogram, at once or at the next `flush`."""
        ...

    def flush(self) -> None:
        """Record what was kept back. To be called every few seconds, and at the end."""
        ...


class NoMeter:
    """Records nothing."""

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Do nothing."""

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Do nothing."""

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


NO_METER: Final = NoMeter()


class MemoryMeter:
    """Keeps what is recorded, and is strict: an undeclared metric or label is an error.

    Raises, from each of its methods:
        KeyError: no such metric is declared.
        ValueError: it is of another kind, or has other labels.
    """

    def __init__(self) -> None:
        self.counters: dict[tuple[str, Labels], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Labels], float] = {}
        self.histograms: dict[tuple[str, Labels], list[float]] = defaultdict(list)

    @property
    def names(self) -> set[str]:
        """Of what was recorded."""
        return {name for kind in (self.counters, self.gauges, self.histograms) for name, _ in kind}

    def value(self, name: str, **labels: str) -> float:
        """Of a counter or a gauge, summed over all labels that are not given."""
        wanted = labels.items()
        series = self.gauges if METRICS[name].kind is Kind.GAUGE else self.counters
        return sum(value for (of, have), value in series.items() if of == name and wanted <= dict(have).items())

    def values(self, name: str) -> list[float]:
        """All that a histogram has counted."""
        return [value for (of, _), values in self.histograms.items() if of == name for value in values]

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Have a counter grow."""
        self.counters[self._key(name, Kind.COUNTER, labels)] += amount

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Say what a gauge is now."""
        self.gauges[self._key(name, Kind.GAUGE, labels)] = value

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Count a value in a histogram."""
        self.histograms[self._key(name, Kind.HISTOGRAM, labels)].append(value)

    def flush(self) -> None:
        """Nothing is kept back."""

    def _key(self, name: str, kind: Kind, labels: dict[str, str]) -> tuple[str, Labels]:
        metric = METRICS[name]
        if metric.kind is not kind or set(metric.labels) != set(labels):
            raise ValueError(
                f"{name} is a {metric.kind} with the labels {metric.labels}, not {kind} with {sorted(labels)}"
            )
        return name, tuple(sorted(labels.items()))


@dataclass(slots=True)
class _Kept:
    """Values of one series that are not recorded yet."""

    labels: Mapping[str, str]
    values: list[float] = field(default_factory=list)


class RayMeter:
    """Records with Ray, which exports from each node. Must be used in a process that is connected to Ray.

    Not to be used from several threads at a time.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._zeros: set[tuple[str, ...]] = set()

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Have a counter grow."""
        if amount > 0:
            self._metric(name).inc(amount, labels)
        elif (series := (name, *labels.values())) not in self._zeros:
            # Ray refuses to add 0. But a series that begins at 1 hides what made it so from every rate.
            self._zeros.add(series)
            self._metric(name)._record(0.0, labels)

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Say what a gauge is now."""
        self._metric(name).set(value, labels)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Count a value in a histogram: now, or with those that follow it."""
        kept = self._kept.get(series := (name, *labels.values()))
        if kept is None:
            kept = self._kept[series] = _Kept(labels)
        kept.values.append(value)
        if len(kept.values) >= _AT_ONCE:
            self._record(name, kept)

    def flush(self) -> None:
        """Record what was kept back."""
        for (name, *_), kept in self._kept.items():
            if kept.values:
                self._record(name, kept)

    def _record(self, name: str, kept: _Kept) -> None:
        observe, labels = self._metric(name).observe, kept.labels
        for value in kept.values:
            observe(value, labels)
        kept.values.clear()

    def _metric(self, name: str) -> Any:
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = _registered(METRICS[name])
        return metric


def _registered(metric: Metric) -> Any:
    from ray.util import metrics

    if metric.kind is Kind.HISTOGRAM:
        return metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
    kind = metrics.Counter if metric.kind is Kind.COUNTER else metrics.Gauge
    return kind(metric.name, metric.help, metric.labels)


def meter_for(*, enabled: bool) -> Meter:
    """Ray's, if this process is connected to Ray and metrics are enabled; else one that does nothing."""
    ray = sys.modules.get("ray")  # never imported for this: a replica can live without
    return RayMeter() if enabled and ray is not None and ray.is_initialized() else NO_METER
