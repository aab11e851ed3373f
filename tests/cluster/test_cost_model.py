"""What a batch takes: learned quickly, hard to fool, and kept as a few numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_cluster.scheduling.cost_model import CPU_PRIOR, GPU_PRIOR, SLOT_PRIOR, CostModel


def real_s(jobs: float, tokens: float, factor: float = 1.0) -> float:
    return factor * (0.003 + 30e-6 * jobs + 100e-6 * tokens)


def batches(count: int, seed: int = 0, *, factor: float = 1.0, noise: float = 0.1) -> Iterator[tuple[int, int, float]]:
    """Mixed batches of 1 to 64 jobs, and what they took."""
    chance = random.Random(seed)
    for _ in range(count):
        jobs = chance.randint(1, 64)
        tokens = jobs * chance.randint(5, 120)
        yield jobs, tokens, real_s(jobs, tokens, factor) * math.exp(chance.gauss(0, noise))


def learned(count: int = 100, seed: int = 0, *, factor: float = 1.0, model: CostModel | None = None) -> CostModel:
    model = model or CostModel()
    for batch in batches(count, seed, factor=factor):
        model.learn(*batch)
    return model


def off(model: CostModel, factor: float = 1.0) -> float:
    """The worst relative error over usual batches."""
    sizes = [(8, 300), (16, 500), (64, 4000)]
    return max(abs(model.predict_s(*size) / real_s(*size, factor) - 1) for size in sizes)


# -- learning ----------------------------------------------------------------------------------------------------------


def test_before_the_first_batch_it_says_what_its_prior_says() -> None:
    assert CostModel().predict_s(16, 1000) == pytest.approx(2e-3 + 16 * 50e-6 + 1000 * 50e-6)
    assert CostModel(GPU_PRIOR).predict_s(16, 1000) < CostModel().predict_s(16, 1000)


def test_one_batch_sets_the_level_and_the_prior_the_rest() -> None:
    """A pool a thousand times faster than was thought is known to be at once, also for other sizes."""
    model = CostModel()
    model.learn(16, 500, 1e-3 * real_s(16, 500))

    assert model.predict_s(16, 500) == pytest.approx(1e-3 * real_s(16, 500), rel=0.05)
    assert model.predict_s(64, 4000) == pytest.approx(1e-3 * real_s(64, 4000), rel=0.5)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_it_learns_what_batches_take(factor: float) -> None:
    model = learned(factor=factor)

    assert off(model, factor) < 0.1
    assert model.measured == 100
    assert 0.03 < model.error < 0.15, "the noise of what was measured"


@pytest.mark.parametrize("factor", [2.0, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_follows_a_change_of_speed_within_thirty_batches(factor: float, seed: int) -> None:
    model = learned(30, seed + 100, factor=factor, model=learned(seed=seed))

    assert off(model, factor) < 0.15


def test_a_slow_first_batch_is_soon_forgotten() -> None:
    """Whatever warms up does it in the first."""
    model = CostModel()
    model.learn(16, 500, 10.0)
    for batch in batches(10):
        model.learn(*batch)

    assert off(model) < 0.3


# -- what must not fool it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [100.0, 1e4, 0.01])
@pytest.mark.parametrize("seed", range(20))
def test_one_outlier_hardly_moves_it(factor: float, seed: int) -> None:
    model = learned(60, seed)
    jobs, tokens, run_s = next(batches(1, seed + 1000))
    sizes = [(jobs, tokens), (16, 500), (64, 4000)]
    before = [model.predict_s(*size) for size in sizes]
    model.learn(jobs, tokens, factor * run_s)

    assert max(abs(model.predict_s(*size) / was - 1) for size, was in zip(sizes, before, strict=True)) < 0.1


def test_one_outlier_in_ten_leaves_it_right() -> None:
    model = CostModel()
    for n, (jobs, tokens, run_s) in enumerate(batches(300)):
        model.learn(jobs, tokens, run_s * (50 if n % 10 == 9 else 1))

    assert off(model) < 0.25


def test_a_single_size_does_not_wind_it_up() -> None:
    """After a hundred thousand equal batches others are still predicted sanely, and learned from as before."""
    model = CostModel()
    for n in range(100_000):
        model.learn(16, 500, real_s(16, 500) * (0.9 if n % 2 else 1.1))
    assert model.predict_s(16, 500) == pytest.approx(real_s(16, 500), rel=0.1)
    assert 0.3 < model.predict_s(64, 4000) / real_s(64, 4000) < 3
    for batch in batches(60):
        model.learn(*batch)

    assert off(model) < 0.15


def test_more_work_never_takes_less() -> None:
    """Though large batches happened to be quicker: what grows with them is then taken for nothing."""
    model = CostModel()
    for _ in range(100):
        model.learn(10, 100, 1.0)
        model.learn(10, 1000, 0.6)

    assert min(model.coefficients) >= 0
    assert 0.5 < model.predict_s(10, 100) <= model.predict_s(10, 1000) <= model.predict_s(10, 10_000) < 1.5


def test_what_takes_the_same_whatever_its_size_is_learned_though_nobody_thought_so() -> None:
    """Small batches and large ones in turn: half of all are surprises at first."""
    model = CostModel()
    for _ in range(30):
        model.learn(10, 100, 1.0)
        model.learn(10, 1000, 1.0)

    assert model.predict_s(10, 100) == pytest.approx(1.0, rel=0.4)
    assert model.predict_s(10, 1000) == pytest.approx(1.0, rel=0.1)


def test_a_level_far_from_the_last_one_does_not_break_it() -> None:
    """What was learned weighs so much then that nothing of the prior is left to tell coefficients apart."""
    model = CostModel()
    for run_s in (1e5, 1e-6, 1e5, 1e-6, 1e-6):
        for _ in range(6):
            model.learn(1, 1, run_s)
            model.learn(4096, 1 << 24, run_s)

    assert 0 < model.predict_s(1, 1) <= model.predict_s(4096, 1 << 24) < math.inf


sizes_and_times = st.lists(
    st.tuples(
        st.integers(1, 4096),
        st.integers(0, 1 << 24),
        st.one_of(st.floats(0, 1e5), st.floats(1e-6, 1e-3), st.sampled_from([math.nan, math.inf, -1.0])),
    ),
    max_size=60,
)


@given(sizes_and_times)
def test_whatever_it_is_told_it_stays_finite_and_more_work_takes_no_less(told: list[tuple[int, int, float]]) -> None:
    model = CostModel()
    for batch in told:
        model.learn(*batch)
    small, large = model.predict_s(1, 1), model.predict_s(4096, 1 << 24)

    assert 0 < small <= large < math.inf
    assert min(model.coefficients) >= 0
    assert 0 <= model.error <= 1


# -- its state ---------------------------------------------------------------------------------------------------------


@given(sizes_and_times)
def test_a_restart_changes_nothing(told: list[tuple[int, int, float]]) -> None:
    model = CostModel(SLOT_PRIOR)
    for batch in told:
        model.learn(*batch)
    text = json.dumps(model.to_state())
    again = CostModel.from_state(json.loads(text))

    assert len(text) < 600
    assert again.measured == model.measured
    assert again.predict_s(16, 500) == pytest.approx(model.predict_s(16, 500), rel=1e-6)


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        "state",
        CostModel().to_state() | {"prior": [1.0, 1.0]},
        CostModel().to_state() | {"prior": [0.0, 0.0, 0.0]},
        CostModel().to_state() | {"information": [math.nan] * 6},
        CostModel().to_state() | {"information": "123456"},
        CostModel().to_state() | {"moment": [-1.0, 0.0, 0.0]},
        CostModel().to_state() | {"measured": 1e400},
        CostModel().to_state() | {"measured": 10**400, "information": [1e308] * 6},
        CostModel().to_state() | {"error": None},
        learned().to_state() | {"information": [0.0, 1e9, 1e9, 0.0, 1e9, 0.0]},
    ],
)
def test_garbage_is_the_prior_with_a_warning(state: object, caplog: pytest.LogCaptureFixture) -> None:
    model = CostModel.from_state(state)

    assert (model.measured, model.coefficients) == (0, CPU_PRIOR)
    assert "unusable" in caplog.text
