"""What a run comes to: the figures of one model, and of all models together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace_cluster.simulation.arrivals import ModelArrivals
from headrace_cluster.simulation.fairness import jain
from headrace_cluster.simulation.oracle import Oracle
from headrace_cluster.simulation.outcome import Fate, Outcome

__all__ = ["ModelFigures", "PolicyFigures", "answered_in_time", "figures_of", "summed"]

Steps = list[tuple[float, int]]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFigures:
    """One model under one policy, ready to be added up."""

    model: str
    jobs: int
    dated: int
    """Jobs with a deadline."""
    in_time: int
    """Of those, how many were answered by then."""
    fates: tuple[int, ...]
    oracle_in_time: int
    """How many jobs with a deadline can be answered by then at most."""
    oracle_cost: float
    """The least that the work costs that was answered in time here."""
    planner_in_time: int
    """How many can be if no job is left out for its size."""
    planner_cost: float | None
    """What the planner pays for the same work; None: it was not asked."""
    fairness: tuple[float, float]
    """Jain's index times the seconds that it was taken over, and those seconds."""
    wait_s: NDArray[np.float32]
    latency_s: NDArray[np.float32]
    """Of the answered ones, from submission to answer."""
    outcome: Outcome
    """Without what is said of single jobs."""


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """All models under one policy."""

    jobs: int
    answered: int
    expired: int
    dead: int
    deadline_attainment: float
    """Of the jobs that have a deadline, the share that was answered by then; if none has one, the share answered."""
    oracle_attainment: float
    cost: float
    """Seconds of replicas, each times its pool's cost."""
    cost_over_oracle: float
    """By the least that the work answered in time can cost."""
    planner_attainment: float
    """What can be had where no job is left out for its size."""
    cost_over_planner: float | None
    """By what somebody pays for the same work who knows it all beforehand, and has to start whole replicas for it."""
    utilisation: float
    """The share of the seconds paid for in which replicas computed."""
    fairness: float | None
    """Jain's index of the work done for tenants while they all had jobs waiting; None: that never was."""
    replicas_peak: int
    replicas_mean: float
    wait_p50_s: float
    """From submission to the replica."""
    wait_p99_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    jobs_per_s: float
    """Answered jobs, from the first arrival to the last answer."""
    batches: int
    batch_jobs: float
    padding: float
    """Tokens computed that were none, as a share of all."""
    returned: int
    decisions: int
    replicas: Steps = field(default_factory=list, repr=False)
    """When how many were paid for, for plots."""
    waiting: Steps = field(default_factory=list, repr=False)

    @property
    def of_oracle(self) -> float:
        """Attainment as a share of what is possible."""
        return self.deadline_attainment / self.oracle_attainment if self.oracle_attainment else 1.0


def answered_in_time(arrivals: ModelArrivals, outcome: Outcome) -> NDArray[np.bool_]:
    """Which jobs were; all that were answered, of those without a deadline."""
    return np.asarray((outcome.fate == Fate.ANSWERED) & (outcome.end_s <= arrivals.deadline_s))


def figures_of(
    arrivals: ModelArrivals, outcome: Outcome, oracle: Oracle, planner_cost: float | None = None
) -> ModelFigures:
    """Boil a run down."""
    answered = outcome.fate == Fate.ANSWERED
    in_time = answered_in_time(arrivals, outcome)
    dated = np.isfinite(arrivals.deadline_s)
    fairness = jain(arrivals, outcome, oracle.least_s)
    figures = ModelFigures(
        model=arrivals.model,
        jobs=len(arrivals),
        dated=int(dated.sum()),
        in_time=int((in_time & dated).sum()),
        fates=tuple(int((outcome.fate == fate).sum()) for fate in Fate),
        oracle_in_time=int(dated.sum()) - oracle.missed,
        oracle_cost=oracle.cost(in_time),
        planner_in_time=int(dated.sum()) - oracle.missed_blindly,
        planner_cost=planner_cost,
        fairness=fairness,
        wait_s=(outcome.start_s - arrivals.offset_s).astype(np.float32),
        latency_s=(outcome.end_s - arrivals.offset_s)[answered].astype(np.float32),
        outcome=outcome,
    )
    outcome.start_s = outcome.end_s = np.empty(0)
    outcome.fate = np.empty(0, dtype=np.int8)
    return figures


def summed(models: Sequence[ModelFigures], horizon_s: float) -> PolicyFigures:
    """All models together."""
    outcomes = [model.outcome for model in models]
    jobs, dated = sum(m.jobs for m in models), sum(m.dated for m in models)
    fates = np.array([model.fates for model in models]).sum(axis=0)
    cost, held_s = sum(o.cost for o in outcomes), sum(o.held_s for o in outcomes)
    computed = sum(o.computed_tokens for o in outcomes)
    batches = sum(o.batches for o in outcomes)
    latency_s = np.concatenate([m.latency_s for m in models])
    wait_s = np.concatenate([m.wait_s for m in models])
    fair_s = sum(m.fairness[1] for m in models)
    replicas = _running_sum(outcomes)
    answered = int(fates[Fate.ANSWERED])
    planned = [model.planner_cost for model in models]
    return PolicyFigures(
        jobs=jobs,
        answered=answered,
        expired=int(fates[Fate.EXPIRED]),
        dead=int(fates[Fate.DEAD]),
        deadline_attainment=_share(sum(m.in_time for m in models), dated) if dated else _share(answered, jobs),
        oracle_attainment=_share(sum(m.oracle_in_time for m in models), dated),
        cost=cost,
        cost_over_oracle=_share(cost, sum(m.oracle_cost for m in models)),
        planner_attainment=_share(sum(m.planner_in_time for m in models), dated),
        cost_over_planner=None if None in planned else _share(cost, sum(filter(None, planned))),
        utilisation=_share(sum(o.busy_s for o in outcomes), held_s),
        fairness=sum(m.fairness[0] for m in models) / fair_s if fair_s else None,
        replicas_peak=max((count for _, count in replicas), default=0),
        replicas_mean=_area(replicas) / horizon_s if horizon_s else 0.0,
        wait_p50_s=_quantile(wait_s, 0.5),
        wait_p99_s=_quantile(wait_s, 0.99),
        latency_p50_s=_quantile(latency_s, 0.5),
        latency_p95_s=_quantile(latency_s, 0.95),
        latency_p99_s=_quantile(latency_s, 0.99),
        jobs_per_s=_share(answered, max((o.ended_s for o in outcomes), default=0.0)),
        batches=batches,
        batch_jobs=_share(jobs - int(fates[Fate.EXPIRED]) + sum(o.returned for o in outcomes), batches),
        padding=1 - _share(sum(o.real_tokens for o in outcomes), computed) if computed else 0.0,
        returned=sum(o.returned for o in outcomes),
        decisions=sum(o.decisions for o in outcomes),
        replicas=replicas,
        waiting=_sum_of_samples(outcomes),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _quantile(values: NDArray[np.float32], q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else 0.0


def _running_sum(outcomes: Sequence[Outcome]) -> Steps:
    """How many replicas of all models were paid for, from when on."""
    changes = sorted(change for outcome in outcomes for change in outcome.replicas)
    total, steps = 0, Steps()
    for time_s, change in changes:
        total += change
        if steps and steps[-1][0] == time_s:
            steps[-1] = (time_s, total)
        else:
            steps.append((time_s, total))
    return steps


def _area(steps: Steps) -> float:
    return sum(count * (after[0] - at_s) for (at_s, count), after in itertools.pairwise(steps))


def _sum_of_samples(outcomes: Sequence[Outcome]) -> Steps:
    """Models are looked at at the same times, until each is done."""
    total: dict[float, int] = {}
    for outcome in outcomes:
        for time_s, count in outcome.waiting:
            total[time_s] = total.get(time_s, 0) + count
    return sorted(total.items())
