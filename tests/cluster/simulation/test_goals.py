"""What was promised of the simulated cluster, with the defaults that everybody gets, and on more than one draw."""

from __future__ import annotations

import pytest

from headrace_cluster.config.models import ScalingConfig
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.simulation import simulate
from headrace_cluster.simulation.trace import load_trace


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bursts_are_answered_in_time_for_little_more_than_they_must_cost(seed: int) -> None:
    trace = load_trace("bursty").model_copy(update={"seed": seed})
    assert trace.scaling == ScalingConfig(), "nothing is tuned for it"
    ours = simulate(trace, policies=POLICIES[:1], processes=1).ours
    assert ours.of_oracle >= 0.99
    assert ours.cost_over_oracle <= 1.15
