"""What a simulation came to, in words and as plain data: for programs, for people, and for the page."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from headrace_cluster.simulation.figures import PolicyFigures
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.simulation import Simulation

__all__ = ["COLUMNS", "comparisons", "row", "to_json"]

_ALIKE_SHARE: Final = 0.0005
"""What two attainments may differ by and be called the same."""
_ALIKE_COST: Final = 1.01

COLUMNS: Final = (
    "policy",
    "in time",
    "cost / oracle's",
    "cost",
    "replicas mean / peak",
    "busy",
    "waits p50 / p99",
    "answered p95",
    "jobs a batch",
    "padding",
    "fairness",
)


def to_json(simulation: Simulation) -> dict[str, Any]:
    """All figures; those of headrace stand at the top, too."""
    ours = simulation.ours
    return {
        "trace": simulation.trace.title,
        "seed": simulation.trace.seed,
        "jobs": ours.jobs,
        "models": len(simulation.trace.named_models),
        "replicas": ours.replicas_peak,
        "simulated_s": round(simulation.horizon_s, 3),
        "seconds": round(simulation.seconds, 2),
        "deadline_attainment": round(ours.deadline_attainment, 6),
        "oracle_attainment": round(ours.oracle_attainment, 6),
        "attainment_over_oracle": round(ours.of_oracle, 6),
        "cost_over_oracle": round(ours.cost_over_oracle, 4),
        "planner_attainment": round(ours.planner_attainment, 6),
        "cost_over_planner": None if ours.cost_over_planner is None else round(ours.cost_over_planner, 4),
        "policies": {name: _plain(figures) for name, figures in simulation.policies.items()},
        "not_better": [words for words, better in comparisons(simulation) if not better],
    }


def _plain(figures: PolicyFigures) -> dict[str, Any]:
    values = {field.name: getattr(figures, field.name) for field in fields(figures) if field.repr}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def row(name: str, figures: PolicyFigures) -> tuple[str, ...]:
    """One policy's figures in words, a column each."""
    return (
        name,
        f"{figures.deadline_attainment:.2%}",
        f"{figures.cost_over_oracle:.2f}",
        f"{figures.cost:,.0f}",
        f"{figures.replicas_mean:,.1f} / {figures.replicas_peak:,}",
        f"{figures.utilisation:.0%}",
        f"{_seconds(figures.wait_p50_s)} / {_seconds(figures.wait_p99_s)}",
        _seconds(figures.latency_p95_s),
        f"{figures.batch_jobs:.1f}",
        f"{figures.padding:.0%}",
        "–" if figures.fairness is None else f"{figures.fairness:.3f}",
    )


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def comparisons(simulation: Simulation) -> list[tuple[str, bool]]:
    """A sentence about each other policy, and whether headrace is better: as good in time and cheaper, or the like."""
    return [
        _compared(simulation.ours, policy.name, simulation.policies[policy.name])
        for policy in POLICIES[1:]
        if policy.name in simulation.policies
    ]


def _compared(ours: PolicyFigures, name: str, theirs: PolicyFigures) -> tuple[str, bool]:
    more = ours.deadline_attainment - theirs.deadline_attainment
    times = ours.cost_over_oracle / theirs.cost_over_oracle if theirs.cost_over_oracle else 1.0
    later, dearer = more < -_ALIKE_SHARE, times > _ALIKE_COST
    better = not later and not dearer and (more > _ALIKE_SHARE or times < 1 / _ALIKE_COST)
    verdict = "better" if better else "no worse" if not (later or dearer) else "worse" if later and dearer else "mixed"
    in_time = f"{abs(more):.2%} {'more' if more >= 0 else 'less'} in time"
    return f"than {name}: {verdict}: {in_time}, at {times:.2f} times the cost of what was in time", better
