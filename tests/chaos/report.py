"""What is printed: a line a scenario, and one JSON object for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chaos.checker import doubled, lost
from chaos.figures import Throughput, percentile, recoveries, redis_recoveries_s, throughput
from chaos.plan import FaultKind
from chaos.scenario import Outcome

__all__ = ["Figures", "figures_of", "line", "summary"]

_CUTS = (FaultKind.CUT, FaultKind.HOLD, FaultKind.HALF_OPEN, FaultKind.KILL_CLIENTS)
_REDIS_KILLS = (FaultKind.KILL_REDIS, FaultKind.TEAR_REDIS)


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of one scenario."""

    submitted: int
    acknowledged: int
    unknown: int
    answered: int
    statuses: Counter[str]
    lost: int
    doubled: int
    unexpected: int
    recovered: int
    """Jobs whose submission seemed to fail at least once, and that ran."""
    replica_kills: int
    """By the harness and by jobs."""
    router_kills: int
    redis_kills: int
    producer_kills: int
    node_kills: int
    stops: int
    cuts: int
    dropped_replies: int
    router_recoveries_s: list[float]
    replica_recoveries_s: list[float]
    redis_recoveries_s: list[float]
    rates: Throughput
    audits: int
    memory: list[dict[str, int]]
    """At the start, at the most and at the end."""

    @property
    def recoveries_s(self) -> list[float]:
        """Of routers and replicas."""
        return self.router_recoveries_s + self.replica_recoveries_s


def figures_of(outcome: Outcome) -> Figures:
    """Count what is told."""
    record, done = outcome.record, outcome.done
    clean = [recovery for recovery in recoveries(record) if recovery.clean]
    traces = record.jobs.values()
    deaths = sum(life.role == "replica" and life.status == -9 for life in record.lives.values())
    return Figures(
        submitted=sum(bool(trace.invoked_ns) for trace in traces),
        acknowledged=sum(bool(trace.acknowledged_ns) for trace in traces),
        unknown=sum(trace.unknown for trace in traces),
        answered=sum(bool(trace.acknowledged_ns and trace.terminals) for trace in traces),
        statuses=Counter(entry.status for trace in traces for entry in trace.terminals),
        lost=len(lost(record)),
        doubled=len(doubled(record)),
        unexpected=sum(bool(trace.terminals) and not trace.invoked_ns for trace in traces),
        recovered=sum(trace.unknown and bool(trace.terminals) for trace in traces),
        replica_kills=max(deaths, done[FaultKind.KILL_REPLICA]),
        router_kills=done[FaultKind.KILL_ROUTER],
        redis_kills=sum(done[kind] for kind in _REDIS_KILLS),
        producer_kills=done[FaultKind.KILL_PRODUCER],
        node_kills=done[FaultKind.KILL_NODE],
        stops=sum(count for kind, count in done.items() if kind.startswith("stop_")),
        cuts=sum(done[kind] for kind in _CUTS),
        dropped_replies=outcome.dropped_replies,
        router_recoveries_s=[recovery.seconds for recovery in clean if recovery.killed == "router"],
        replica_recoveries_s=[recovery.seconds for recovery in clean if recovery.killed == "replica"],
        redis_recoveries_s=redis_recoveries_s(record),
        rates=throughput(record, within_s=outcome.scenario.rules.throughput_within_s),
        audits=len(record.audits),
        memory=_memory([numbers for _, numbers in record.memory]),
    )


def _memory(samples: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    if not samples:
        return []
    most = {what: max(sample[what] for sample in samples) for what in samples[0]}
    return [samples[0], most, samples[-1]]


def line(outcome: Outcome) -> str:
    """One scenario in one line."""
    it = figures_of(outcome)
    s, r = it.statuses, it.recoveries_s
    parts = [
        f"{outcome.scenario.name} seed {outcome.seed} {outcome.duration_s:.0f} s",
        f"submitted {it.submitted} acked {it.acknowledged} unknown {it.unknown}",
        f"ok {s['ok']} err {s['error']} dead {s['dead']} cancelled {s['cancelled']} expired {s['expired']}",
        f"LOST {it.lost} dup {it.doubled} unexpected {it.unexpected} recovered {it.recovered}",
        f"kills {it.replica_kills} replicas {it.router_kills} routers {it.redis_kills} redis "
        f"{it.producer_kills} producers {it.node_kills} nodes, {it.stops} stops, {it.cuts} cuts, "
        f"{it.dropped_replies} dropped replies",
        f"recovery p50 {percentile(r, 0.5):.2f} p99 {percentile(r, 0.99):.2f} max {max(r, default=0):.2f} s",
        f"throughput {it.rates.base:.0f} / {it.rates.least:.0f} / {it.rates.after:.0f} per s",
        "redis " + _megabytes(it.memory, "redis_bytes") + ", router " + _megabytes(it.memory, "router_bytes"),
    ]
    return " | ".join(parts)


def _megabytes(memory: Sequence[dict[str, int]], what: str) -> str:
    return " / ".join(f"{sample[what] / 1e6:.0f}" for sample in memory) + " MB"


def summary(outcomes: Sequence[Outcome], *, mode: str, seed: int, server: str, duration_s: float) -> dict[str, Any]:
    """All scenarios together, for programs."""
    figures = [figures_of(outcome) for outcome in outcomes]
    counts = ("submitted", "acknowledged", "answered", "unknown", "recovered", "lost", "doubled", "unexpected")
    kills = (
        *("redis_kills", "router_kills", "replica_kills", "producer_kills", "node_kills"),
        *("stops", "cuts", "dropped_replies"),
    )
    ratios = [
        it.rates.ratio for it, outcome in zip(figures, outcomes, strict=True) if outcome.scenario.rules.throughput_ratio
    ]
    return {
        "mode": mode,
        "seed": seed,
        "server": server,
        "duration_s": round(duration_s, 1),
        **{name: sum(getattr(it, name) for it in figures) for name in (*counts, *kills)},
        "statuses": dict(sum((it.statuses for it in figures), Counter[str]())),
        **_recovery([value for it in figures for value in it.recoveries_s], "recovery"),
        **_recovery([value for it in figures for value in it.router_recoveries_s], "router_recovery"),
        **_recovery([value for it in figures for value in it.replica_recoveries_s], "replica_recovery"),
        **_recovery([value for it in figures for value in it.redis_recoveries_s], "redis_recovery"),
        "throughput_after_ratio": round(min(ratios, default=0.0), 3),
        "audits": sum(it.audits for it in figures),
        "violations": [
            f"{outcome.scenario.name}: {violation}" for outcome in outcomes for violation in outcome.violations
        ],
    }


def _recovery(values: Sequence[float], name: str) -> dict[str, float]:
    return {
        f"{name}_p50_s": round(percentile(values, 0.5), 3),
        f"{name}_p99_s": round(percentile(values, 0.99), 3),
        f"{name}_max_s": round(max(values, default=0.0), 3),
    }
