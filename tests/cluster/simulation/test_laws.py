"""What must hold of every simulation: nothing is lost or doubled, a seed says all, nobody beats the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_cluster.simulation.arrivals import draw_arrivals
from headrace_cluster.simulation.oracle import consult
from headrace_cluster.simulation.outcome import Fate
from headrace_cluster.simulation.policies import POLICIES, Policy, run_model
from headrace_cluster.simulation.report import to_json
from headrace_cluster.simulation.simulation import simulate
from headrace_cluster.simulation.trace import Trace, parse_trace

JOB_S = 0.01
HARD: dict[str, Any] = {
    "jobs": 800,
    "arrivals": {
        "jobs_per_s": 30,
        "bursts": {"on_s": 5, "off_s": 5, "quiet": 0.2},
        "flood": {"jobs_per_s": 40, "from_s": 10, "to_s": 15},
    },
    "sizes": {"kind": "pareto", "median": 60, "alpha": 1.2},
    "tenants": {"count": 3},
    "priorities": [0.2, 0.6, 0.2],
    "deadlines": {"share": 0.8, "least_s": 1, "most_s": 20},
    "work": {"batch_s": 0.02, "token_s": 0.001, "noise": 0.3, "slow_share": 0.02, "slow_factor": 20},
    "batching": {"max_jobs": 8},
    "pools": [{"min_replicas": 1, "max_replicas": 6, "start_up_s": 3}],
    "losses": [{"at_s": 12, "share": 0.5}, {"at_s": 20, "share": 1.0}],
}
SLOTS: dict[str, Any] = {**HARD, "work": {"batch_s": 0.1, "token_s": 0.002, "slots": 4}}
TWO_POOLS: dict[str, Any] = {
    **HARD,
    "pools": [
        {"min_replicas": 1, "max_replicas": 3, "start_up_s": 2},
        {"name": "gpu", "min_replicas": 0, "max_replicas": 2, "start_up_s": 6, "speed": 8, "cost": 4},
    ],
}
MANY: dict[str, Any] = {**HARD, "models": 4, "skew": 1.0}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("content", [HARD, SLOTS, TWO_POOLS, MANY], ids=["hard", "slots", "two pools", "many"])
def test_every_job_ends_once(content: dict[str, Any], policy: Policy) -> None:
    """Whatever dies: a second end raises, and none may be missing."""
    trace = parse_trace(content)
    for model, arrivals in zip(trace.named_models, draw_arrivals(trace), strict=True):
        outcome = run_model(trace, model, arrivals, policy)
        assert not (outcome.fate == Fate.NONE).any()
        assert (outcome.end_s >= arrivals.offset_s).all()
        assert (outcome.start_s >= arrivals.offset_s).all()
        assert not (outcome.fate == Fate.DEAD).any(), "no job kills replicas here"
        expired = outcome.fate == Fate.EXPIRED
        assert np.isfinite(arrivals.deadline_s[expired]).all()
        assert outcome.busy_s <= outcome.held_s + 1e-6
        assert sum(change for _, change in outcome.replicas) == 0


def test_a_seed_says_everything() -> None:
    """The same twice, and something else for another seed; the time that it took is no part of it."""
    first, again, other = (
        {**to_json(simulate(parse_trace({**HARD, "seed": seed}), processes=1)), "seconds": 0} for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_processes_change_nothing() -> None:
    """Models that run beside each other come out as one after the other."""
    trace = parse_trace({**MANY, "jobs": 400})
    one, two = (simulate(trace, policies=POLICIES[:1], processes=count).ours for count in (1, 2))
    assert one == two


def test_what_the_others_do_does_not_change_a_models_jobs() -> None:
    """Each model draws for itself."""
    alone, both = ([{"name": "a"}], [{"name": "a"}, {"name": "b", "sizes": {"median": 7}}])
    content = {"duration_s": 50, "arrivals": {"jobs_per_s": 10}}
    lone, shared = (draw_arrivals(parse_trace({**content, "mix": mix})) for mix in (alone, both))
    assert lone[0].model == shared[0].model == "a"
    assert len(shared[0]) == pytest.approx(len(lone[0]) / 2, rel=0.3)


# -- queues ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.8])
def test_an_m_d_1_queue_waits_as_the_formula_says(load: float) -> None:
    """Poisson arrivals, as long to do each, one replica: the mean wait is load / (2 (1 - load)) times as long."""
    trace = parse_trace(
        {
            "jobs": 20_000,
            "arrivals": {"jobs_per_s": load / JOB_S},
            "deadlines": {"share": 0.0},
            "work": {"batch_s": 0.0, "job_s": JOB_S, "token_s": 0.0},
            "batching": {"max_jobs": 1, "linger_ms": 0},
            "overhead_s": 0,
        }
    )
    figures = simulate(trace, policies=POLICIES[:1], processes=1)
    [model] = figures.models["headrace"]
    waited_s = float(model.latency_s.mean()) - JOB_S
    assert waited_s / JOB_S == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert figures.ours.utilisation == pytest.approx(load, rel=0.02)


# -- the oracle -----------------------------------------------------------------------------------------------


def bounded(trace: Trace) -> None:
    """Hold every policy against both bounds."""
    for name, figures in simulate(trace, processes=1).policies.items():
        assert figures.deadline_attainment <= figures.oracle_attainment + 1e-9, name
        assert figures.cost_over_oracle >= 1 - 1e-9, name


@pytest.mark.parametrize("content", [HARD, SLOTS, TWO_POOLS, MANY], ids=["hard", "slots", "two pools", "many"])
def test_nobody_beats_the_oracle(content: dict[str, Any]) -> None:
    """With too few replicas, and with enough."""
    bounded(parse_trace({**content, "jobs": 600}))
    generous = [{"min_replicas": 4, "max_replicas": 60, "start_up_s": 1}]
    bounded(parse_trace({**content, "jobs": 600, "pools": generous, "losses": []}))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rate=st.floats(1, 60),
    replicas=st.integers(1, 4),
    slack_s=st.floats(0.2, 5),
    batch_s=st.floats(0.001, 0.2),
    max_jobs=st.integers(1, 16),
)
def test_nobody_beats_the_oracle_on_any_load(
    seed: int, rate: float, replicas: int, slack_s: float, batch_s: float, max_jobs: int
) -> None:
    """Overload included, where the bound has to count jobs that cannot be saved."""
    bounded(
        parse_trace(
            {
                "jobs": 150,
                "seed": seed,
                "arrivals": {"jobs_per_s": rate},
                "sizes": {"kind": "lognormal", "median": 50},
                "deadlines": {"least_s": slack_s / 2, "most_s": slack_s},
                "work": {"batch_s": batch_s, "token_s": 0.001, "noise": 0.2},
                "batching": {"max_jobs": max_jobs},
                "pools": [{"min_replicas": replicas, "max_replicas": replicas}],
                "overhead_s": 0,
            }
        )
    )


def test_the_oracle_counts_what_nobody_can_save() -> None:
    """A hundred jobs of a second, due after ten, on two replicas: twenty can be done, and eighty cannot."""
    trace = parse_trace(
        {
            "jobs": 100,
            "arrivals": {"jobs_per_s": 1e5},
            "deadlines": {"least_s": 10, "most_s": 10},
            "work": {"batch_s": 0, "job_s": 1, "token_s": 0},
            "pools": [{"min_replicas": 2, "max_replicas": 2}],
        }
    )
    [arrivals] = draw_arrivals(trace)
    oracle = consult(arrivals, trace.work, trace.batching, trace.pools)
    assert oracle.missed == pytest.approx(80, abs=1)
    assert oracle.cost(np.ones(len(arrivals), dtype=np.bool_)) == pytest.approx(100)
    assert math.isclose(oracle.cost_per_s, 1.0)
