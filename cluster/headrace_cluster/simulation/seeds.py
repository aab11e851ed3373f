"""One trace drawn several times: what of its figures is chance, and what is not."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace_cluster.simulation.policies import POLICIES, Policy
from headrace_cluster.simulation.report import comparisons
from headrace_cluster.simulation.simulation import Progress, Simulation, simulate
from headrace_cluster.simulation.trace import Trace

__all__ = ["COMPARED", "Spread", "over_seeds", "spreads", "summary"]

COMPARED: Final = ("deadline_attainment", "attainment_over_oracle", "cost_over_oracle", "cost_over_planner")
"""The figures of which the spread is told, by the names that they have in the report."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over all seeds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a seed."""
        return cls(statistics.median(values), min(values), max(values))


def over_seeds(
    trace: Trace,
    number: int,
    *,
    policies: Sequence[Policy] = POLICIES,
    processes: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Iterator[Simulation]:
    """Simulate a trace with its own seed, and with those that follow it.

    Raises:
        ConfigError: arrivals that were recorded cannot be read.
    """
    for seed in range(trace.seed, trace.seed + number):
        drawn = trace.model_copy(update={"seed": seed})
        yield simulate(drawn, policies=policies, processes=processes, progress=progress)


def spreads(simulations: Sequence[Simulation]) -> dict[str, dict[str, Spread]]:
    """For each policy, the figures that are compared; those that are not asked of a policy are left out."""
    return {
        policy: {
            name: Spread.of([float(value) for value in values])
            for name in COMPARED
            if None not in (values := [_figure(simulation, policy, name) for simulation in simulations])
        }
        for policy in simulations[0].policies
    }


def _figure(simulation: Simulation, policy: str, name: str) -> Any:
    figures = simulation.policies[policy]
    return figures.of_oracle if name == "attainment_over_oracle" else getattr(figures, name)


def summary(simulations: Sequence[Simulation]) -> dict[str, Any]:
    """Medians and spreads as plain data, and whom we did not beat with which seed."""
    first = simulations[0]
    return {
        "trace": first.trace.title,
        "seeds": [simulation.trace.seed for simulation in simulations],
        "seconds": round(sum(simulation.seconds for simulation in simulations), 2),
        "policies": {
            policy: {name: _plain(spread) for name, spread in figures.items()}
            for policy, figures in spreads(simulations).items()
        },
        "not_better": [
            {"seed": simulation.trace.seed, "words": words}
            for simulation in simulations
            for words, better in comparisons(simulation)
            if not better
        ],
    }


def _plain(spread: Spread) -> dict[str, float]:
    return {"median": round(spread.median, 6), "least": round(spread.least, 6), "most": round(spread.most, 6)}
