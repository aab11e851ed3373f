"""A whole trace under every policy, on all cores: models share nothing but the trace, so each runs by itself."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from headrace_cluster.simulation.arrivals import ModelArrivals, draw_arrivals
from headrace_cluster.simulation.figures import ModelFigures, PolicyFigures, answered_in_time, figures_of, summed
from headrace_cluster.simulation.oracle import Oracle, consult
from headrace_cluster.simulation.outcome import Outcome
from headrace_cluster.simulation.planner import planned_cost
from headrace_cluster.simulation.policies import POLICIES, Policy, run_model
from headrace_cluster.simulation.trace import ModelTrace, Trace

__all__ = ["Simulation", "simulate"]

_WORTH_PROCESSES: Final = 100_000
"""From how many jobs of all policies on other processes pay for their start."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it."""

    trace: Trace
    policies: dict[str, PolicyFigures]
    models: dict[str, list[ModelFigures]] = field(repr=False)
    horizon_s: float
    """How long jobs arrived, in simulated time."""
    seconds: float
    """How long it took, in real time."""

    @property
    def ours(self) -> PolicyFigures:
        """Those of headrace."""
        return self.policies[POLICIES[0].name]

    @property
    def jobs(self) -> int:
        """How many arrived."""
        return next(iter(self.policies.values())).jobs


@dataclass(frozen=True, slots=True)
class _Task:
    trace: Trace
    model: ModelTrace
    arrivals: ModelArrivals
    policy: Policy


def simulate(
    trace: Trace,
    *,
    policies: Sequence[Policy] = POLICIES,
    processes: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Simulation:
    """Run a trace under each of the policies.

    Args:
        trace: what happens.
        policies: what is compared.
        processes: how many work at it; None: one for each core, if there is enough to do.
        progress: is told how many jobs are done, of how many, each policy's counted.

    Raises:
        ConfigError: arrivals that were recorded cannot be read.
    """
    began_s = time.perf_counter()
    arrivals = draw_arrivals(trace)
    # The largest first, so that no process is left with a large one in the end.
    tasks = sorted(
        (
            _Task(trace, model, of_model, policy)
            for policy in policies
            for model, of_model in zip(trace.named_models, arrivals, strict=True)
        ),
        key=lambda task: -len(task.arrivals),
    )
    whole, done = sum(len(task.arrivals) for task in tasks), 0
    if processes is None:
        processes = (os.cpu_count() or 1) if whole >= _WORTH_PROCESSES else 1
    models: dict[str, list[ModelFigures]] = {policy.name: [] for policy in policies}
    for policy, figures in _ran(tasks, processes):
        models[policy].append(figures)
        done += figures.jobs
        progress(done, whole)
    horizon_s = trace.horizon_s or max((float(a.offset_s[-1]) for a in arrivals if len(a)), default=0.0)
    return Simulation(
        trace,
        {name: summed(sorted(of_policy, key=_name), horizon_s) for name, of_policy in models.items()},
        models,
        horizon_s,
        time.perf_counter() - began_s,
    )


def _name(figures: ModelFigures) -> str:
    return figures.model


def _ran(tasks: Sequence[_Task], processes: int) -> Iterator[tuple[str, ModelFigures]]:
    if processes <= 1:
        yield from map(_run, tasks)
        return
    # Not by fork: the parent may have threads, a progress bar's for one.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_run, tasks)


def _run(task: _Task) -> tuple[str, ModelFigures]:
    trace, model = task.trace, task.model
    outcome = run_model(trace, model, task.arrivals, task.policy)
    oracle = consult(
        task.arrivals, model.work or trace.work, model.batching or trace.batching, model.pools or trace.pools
    )
    planned = _planned_cost(task, outcome, oracle) if task.policy == POLICIES[0] else None
    return task.policy.name, figures_of(task.arrivals, outcome, oracle, planned)


def _planned_cost(task: _Task, outcome: Outcome, oracle: Oracle) -> float:
    """What the planner pays for what was answered in time."""
    trace, model, arrivals = task.trace, task.model, task.arrivals
    chosen = answered_in_time(arrivals, outcome)
    return planned_cost(
        arrivals.offset_s[chosen],
        arrivals.deadline_s[chosen],
        oracle.least_s[chosen] / ((model.work or trace.work).slots or 1),
        model.pools or trace.pools,
        horizon_s=trace.horizon_s or float(arrivals.offset_s.max(initial=0.0)),
    )
