"""Faster variants under overload: when a pool gives up quality for speed, and when it takes it back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.messages.rungs import Rung, pack_rungs, unpack_rungs
from headrace_cluster.autoscaling.variant_ladder import LadderPolicy, PoolLoad, VariantLadder

RUNGS = (Rung("fp32", 1.0, 1.0), Rung("int8", 0.995, 3.0), Rung("small", 0.98, 6.0), Rung("tiny", 0.9, 12.0))
POLICY = LadderPolicy(floor=0.97, step_after_s=10, back_after_s=60, drain_s=30)
OVERLOAD = PoolLoad(drain_s=100, busy=2.0, at_most=True)
QUIET = PoolLoad(drain_s=0.0, busy=0.01, at_most=False)


class Pool:
    """A pool that runs what it is told, and remembers when it was told something else."""

    def __init__(self, policy: LadderPolicy = POLICY, variant: str | None = "fp32") -> None:
        self.ladder = VariantLadder(policy)
        self.variant = variant
        self.now_s = 0.0
        self.changes: list[tuple[float, str]] = []
        self.reasons: tuple[str, ...] = ()

    def look(self, load: PoolLoad | None, *, after_s: float = 1.0) -> str:
        choice = self.ladder.decide(self.now_s, load, rungs=RUNGS, current=self.variant)
        assert choice.changed == (choice.variant != self.variant)
        if choice.changed:
            self.changes.append((self.now_s, choice.variant))
            self.reasons = choice.reasons
        self.variant = choice.variant
        self.now_s += after_s
        return choice.variant

    def look_for(self, seconds: int, load: PoolLoad | None) -> str:
        for _ in range(seconds):
            self.look(load)
        assert self.variant is not None
        return self.variant


# -- as a tutorial ------------------------------------------------------------------------------------------


def test_it_begins_with_the_best() -> None:
    assert Pool(variant=None).look(QUIET) == "fp32"


def test_sustained_overload_takes_one_step_and_says_why() -> None:
    pool = Pool()
    assert pool.look_for(10, OVERLOAD) == "fp32"
    assert pool.look(OVERLOAD) == "int8"
    assert pool.reasons == (
        "fp32 needs 100 s for what waits, more than 30, for 10 s",
        "no replica can be added",
        "int8 is 3 times as fast as the best and keeps 0.995 of its quality",
    )


def test_it_goes_no_further_than_the_floor() -> None:
    pool = Pool()
    assert pool.look_for(500, OVERLOAD) == "small"  # `tiny` keeps 0.9, the floor is 0.97
    assert [variant for _, variant in pool.changes] == ["int8", "small"]


def test_with_slack_it_comes_back_step_by_step() -> None:
    pool = Pool(variant="small")
    assert pool.look_for(60, QUIET) == "small"
    assert pool.look_for(2, QUIET) == "int8"
    assert pool.look_for(70, QUIET) == "fp32"
    assert pool.look_for(500, QUIET) == "fp32"


# -- edges ----------------------------------------------------------------------------------------------------


def test_replicas_come_before_quality() -> None:
    assert Pool().look_for(100, PoolLoad(drain_s=1000, busy=5, at_most=False)) == "fp32"


def test_a_moment_without_overload_starts_the_waiting_anew() -> None:
    pool = Pool()
    for _ in range(20):
        assert pool.look_for(9, OVERLOAD) == "fp32"
        assert pool.look(QUIET) == "fp32"


def test_it_does_not_go_back_to_what_would_be_too_slow() -> None:
    """`int8` is three times as slow as it looks from here: 0.3 of it is 0.9 of the other."""
    pool = Pool(variant="int8")
    assert pool.look_for(1000, PoolLoad(drain_s=0, busy=0.3, at_most=False)) == "int8"
    assert pool.look_for(1000, PoolLoad(drain_s=6, busy=0.1, at_most=False)) == "int8"
    assert pool.look_for(62, PoolLoad(drain_s=4, busy=0.25, at_most=False)) == "fp32"


def test_an_unknown_load_changes_nothing_and_proves_nothing() -> None:
    pool = Pool()
    pool.look_for(8, OVERLOAD)
    assert pool.look_for(300, None) == "fp32"
    assert pool.look_for(10, OVERLOAD) == "fp32"
    assert pool.look(OVERLOAD) == "int8"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_is_no_sustained_overload(jump_s: float) -> None:
    pool = Pool()
    pool.look(OVERLOAD, after_s=jump_s)
    assert pool.look_for(10, OVERLOAD) == "fp32"
    assert pool.look(OVERLOAD) == "int8"


def test_what_is_no_longer_allowed_is_left_at_once() -> None:
    assert Pool(variant="tiny").look(QUIET) == "small"
    assert Pool(LadderPolicy(floor=1.0), variant="small").look(QUIET) == "fp32"
    pool = Pool(variant="of-another-config")
    assert pool.look(QUIET) == "fp32"
    assert pool.reasons == ("of-another-config is no variant that it has",)


def test_two_who_decide_agree() -> None:
    """Each sees what the other has told the pool, and waits from then on: they do not go two steps at once."""
    one, other = VariantLadder(POLICY), VariantLadder(POLICY)
    current, seen = "fp32", []
    for now_s in range(25):
        for ladder in (one, other):
            choice = ladder.decide(float(now_s), OVERLOAD, rungs=RUNGS, current=current)
            current = choice.variant
        seen.append(current)
    assert seen[10] == "int8"
    assert "small" not in seen[:20]


def test_a_pool_needs_a_variant() -> None:
    with pytest.raises(ValueError, match="must have one"):
        VariantLadder(POLICY).decide(0.0, QUIET, rungs=(), current=None)


# -- under a load, with a queue that really grows ------------------------------------------------------------


def simulate(arrivals_per_s: Callable[[float], float], *, minutes: int, pool: Pool) -> list[float]:
    """A pool that does one job a second at the best variant; returns its backlog, second by second."""
    speed_of = {rung.variant: rung.speed for rung in RUNGS}
    backlog, seen = 0.0, []
    for second in range(60 * minutes):
        rate, speed = arrivals_per_s(second), speed_of[str(pool.variant)]
        backlog = max(0.0, backlog + rate - speed)
        drain_s = 0.0 if not backlog else backlog / (speed - rate) if rate < speed else float("inf")
        pool.look(PoolLoad(drain_s=drain_s, busy=rate / speed, at_most=True))
        seen.append(backlog)
    return seen


@settings(max_examples=12)
@given(st.floats(0.05, 8.0), st.floats(0, 0.1), st.integers(0, 10**6))
def test_a_constant_load_with_noise_does_not_make_it_flap(rate: float, noise: float, seed: int) -> None:
    """Every step is taken once at most, and it keeps up where anything could."""
    dice, pool = random.Random(seed), Pool()
    backlog = simulate(lambda _: rate * (1 + noise * dice.uniform(-1, 1)), minutes=40, pool=pool)
    variants = [variant for _, variant in pool.changes]
    assert variants in (["int8", "small"][: len(variants)], ["int8", "fp32"])
    if rate < 5.5:  # `small` does six a second
        assert backlog[-1] <= 30 * rate + 1


def test_a_load_that_comes_and_goes_drives_it_to_and_fro_ever_more_rarely() -> None:
    """Going back turns out to be wrong soon after, again and again; so it waits longer each time."""
    pool = Pool()
    simulate(lambda second: 2.5 if second % 120 < 40 else 0.0, minutes=120, pool=pool)
    per_hour = [sum(at_s // 3600 == hour for at_s, _ in pool.changes) for hour in (0, 1)]
    assert 2 < per_hour[0] < 20, "without that it would be twice every two minutes"
    assert per_hour[1] <= 2
    assert pool.look_for(60 * 16 + 60, QUIET) == "fp32"


def test_a_burst_is_over_and_everything_is_as_before() -> None:
    pool = Pool()
    simulate(lambda second: 4.0 if second < 120 else 0.1, minutes=20, pool=pool)
    assert [variant for _, variant in pool.changes][-1] == "fp32"
    assert {"int8"} <= {variant for _, variant in pool.changes}


# -- what replicas tell ------------------------------------------------------------------------------------------


def test_rungs_cross_a_process() -> None:
    assert unpack_rungs(pack_rungs(RUNGS)) == RUNGS


@pytest.mark.parametrize(
    "packed",
    [b"", b"[]", b"{}", b"nonsense", b"\xff", b"[1]", b'[{"variant": "a"}]', b"[" * 100_000,
     b'[{"variant": "a", "quality": 1, "speed": 0}]', b'[{"variant": "a", "quality": NaN, "speed": 1}]'],
)  # fmt: skip
def test_what_is_no_rungs_is_refused(packed: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack_rungs(packed)
