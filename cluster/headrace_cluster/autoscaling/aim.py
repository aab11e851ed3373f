"""What a model's jobs ask for: how many are to be done, within how many seconds, and what each of them takes."""

from __future__ import annotations

from dataclasses import dataclass

from headrace_cluster.autoscaling.observation import ModelLoad
from headrace_cluster.autoscaling.plan import ModelPlan
from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["Aim", "aim_of", "answer_s", "horizon_s", "job_s", "steady_per_s"]

_LEAST_HORIZON = 0.25
"""The part of its horizon that work is always given: else whatever is late would ask for all there is."""
_IN_TIME = 0.8
"""The part of a job's slack that the plan uses; the rest is for what goes otherwise."""
_SOMETHING = 0.5
"""Jobs; a rate that fades away never asks for nothing, and must not start a replica for it."""


def answer_s(plan: ModelPlan, load: ModelLoad, cost: CostModel) -> float:
    """How long a replica takes to answer a batch of what there is; of an engine that generates, a job."""
    jobs = min(_batch_jobs(plan, load), max(1, load.live))
    return cost.predict_s(jobs, jobs * load.mean_tokens)


def job_s(plan: ModelPlan, load: ModelLoad, cost: CostModel) -> float:
    """How many seconds of one replica a job takes, among as many as fit."""
    jobs = _batch_jobs(plan, load)
    return cost.predict_s(jobs, jobs * load.mean_tokens) / (plan.slots or jobs)


def _batch_jobs(plan: ModelPlan, load: ModelLoad) -> int:
    if plan.slots:
        return 1
    return max(1, min(plan.max_jobs, int(plan.max_tokens / max(1.0, load.mean_tokens))))


@dataclass(frozen=True, slots=True)
class Aim:
    """What is to be done of what is there."""

    jobs: float
    within_s: float


def aim_of(plan: ModelPlan, load: ModelLoad) -> Aim:
    """How many jobs are to be done within how many seconds.

    All that is there has the whole horizon, where it has come at the pace at which jobs come. What is more than that
    came in a burst, as long ago as the oldest, and has only the rest; a quarter of the horizon at least.
    """
    whole_s = max(0.1, horizon_s(plan, load))
    burst = load.live - load.arrivals_per_s * load.oldest_s
    rest_s = max(whole_s - load.oldest_s, _LEAST_HORIZON * whole_s)
    return Aim(burst, rest_s) if burst / rest_s > load.live / whole_s else Aim(load.live, whole_s)


def horizon_s(plan: ModelPlan, load: ModelLoad) -> float:
    """Within how many seconds of its submission a job is to be answered."""
    return plan.drain_s if load.slack_s is None else min(plan.drain_s, _IN_TIME * load.slack_s)


def steady_per_s(plan: ModelPlan, load: ModelLoad) -> float:
    """How many jobs a second there must be replicas for, whatever is there now; 0 where nearly none come."""
    expected = load.arrivals_per_s * horizon_s(plan, load)
    return load.arrivals_per_s / plan.utilisation if load.live or expected >= _SOMETHING else 0.0
