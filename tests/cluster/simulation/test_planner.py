"""What the planner pays, with numbers that can be checked by hand: whole replicas, their starts, and what may wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_cluster.simulation.planner import planned_cost
from headrace_cluster.simulation.trace import PoolTrace


def pool(**settings_: Any) -> PoolTrace:
    return PoolTrace(**({"min_replicas": 0, "max_replicas": 20, "start_up_s": 8.0} | settings_))


def cost(release_s: Any, slack_s: float, *pools: PoolTrace, horizon_s: float = 0.0) -> float:
    """Of jobs of a second each."""
    release_s = np.asarray(release_s, dtype=np.float64)
    return planned_cost(release_s, release_s + slack_s, np.ones(len(release_s)), pools, horizon_s=horizon_s)


def test_a_replica_is_paid_for_while_it_starts() -> None:
    """Ten seconds of work for one replica, which has a minute for it, after a start of eight."""
    assert cost(np.zeros(10), 60, pool()) == pytest.approx(18)


def test_what_must_be_done_at_once_needs_more_of_them() -> None:
    """Ten jobs within five seconds: two replicas, two starts."""
    assert cost(np.zeros(10), 5, pool()) == pytest.approx(2 * 8 + 10)


def test_a_short_pause_is_waited_out_and_a_long_one_is_not() -> None:
    """To keep a replica for six seconds is cheaper than another start; for a hundred, it is not."""
    short, long = (np.concatenate([np.arange(0, 10.0), np.arange(10.0 + pause, 20 + pause)]) for pause in (6, 100))
    assert cost(short, 1, pool()) == pytest.approx(8 + 10 + 6 + 10, abs=2)
    assert cost(long, 1, pool()) == pytest.approx(2 * (8 + 10), abs=2)


def test_the_least_number_is_paid_for_all_the_time() -> None:
    assert cost(np.zeros(10), 60, pool(min_replicas=2), horizon_s=100) == pytest.approx(200)


def test_a_gpu_is_worth_its_start_for_much_work_only() -> None:
    """Ten times as fast, six times as dear: for 300 s of work 6 · (10 + 30), on a core 8 + 300. For ten, the core."""
    pools = (pool(max_replicas=4), pool(max_replicas=4, name="gpu", speed=10.0, cost=6.0, start_up_s=10.0))
    assert cost(np.zeros(300), 1000, *pools) == pytest.approx(6 * (10 + 30), rel=0.02)
    assert cost(np.zeros(10), 1000, *pools) == pytest.approx(18, rel=0.02)


def test_no_jobs_cost_nothing() -> None:
    """Beyond those that there are at least."""
    assert cost([], 1, pool()) == 0
    assert cost([], 1, pool(min_replicas=2), horizon_s=10) == 20


@settings(max_examples=10, deadline=None)
@given(
    release_s=st.lists(st.floats(0, 100), min_size=5, max_size=60),
    slack_s=st.floats(2, 50),
    start_up_s=st.floats(4, 20),
)
def test_it_pays_for_the_work_at_least(release_s: list[float], slack_s: float, start_up_s: float) -> None:
    """And for a start; and to have more time never costs more than a step or two."""
    paid = cost(release_s, slack_s, pool(max_replicas=100, start_up_s=start_up_s))
    step_s = max(start_up_s / 8, (max(release_s) + 2 * slack_s) / 500)
    assert paid >= len(release_s) + start_up_s - step_s
    assert cost(release_s, 2 * slack_s, pool(max_replicas=100, start_up_s=start_up_s)) <= paid + 2 * step_s + 1e-6
