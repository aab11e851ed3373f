"""A trace drawn several times: medians, spreads, and no seed left out."""

from __future__ import annotations

from typing import Any

from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.seeds import Spread, over_seeds, spreads, summary
from headrace_cluster.simulation.trace import parse_trace

TRACE: dict[str, Any] = {
    "seed": 5,
    "jobs": 60,
    "arrivals": {"jobs_per_s": 20},
    "sizes": {"kind": "lognormal"},
    "pools": [{"max_replicas": 4}],
}


def test_a_spread_is_the_median_and_what_is_around_it() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_each_seed_is_a_simulation_of_its_own() -> None:
    """The trace's own seed is the first, so the same figures come out as without `--seeds`."""
    simulations = list(over_seeds(parse_trace(TRACE), 3, processes=1))
    assert [simulation.trace.seed for simulation in simulations] == [5, 6, 7]
    assert len({simulation.ours.cost_over_oracle for simulation in simulations}) == 3
    found = spreads(simulations)["headrace"]["cost_over_oracle"]
    costs = sorted(simulation.ours.cost_over_oracle for simulation in simulations)
    assert [found.least, found.median, found.most] == costs


def test_the_summary_has_every_policy_and_whom_we_did_not_beat() -> None:
    report = summary(list(over_seeds(parse_trace(TRACE), 2, processes=1)))
    assert report["seeds"] == [5, 6]
    assert set(report["policies"]) == {policy.name for policy in POLICIES}
    assert set(report["policies"]["headrace"]) - set(report["policies"]["serve"]) == {"cost_over_planner"}
    assert all(row["seed"] in (5, 6) for row in report["not_better"])
