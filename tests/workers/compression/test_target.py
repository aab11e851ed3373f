"""Targets: what a search shall reach, as a person writes it."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import RecipeError
from headrace_workers.compression.search.target import QUANTITIES, Condition, Target, parse_target


def test_conditions_stand_side_by_side() -> None:
    """Four times as fast, and at most one percent of the metric lost."""
    target = parse_target("speed>=4x, drop<=1%")
    assert target == Target((Condition("speed", 4.0), Condition("drop", 0.01)))
    assert str(target) == "speed>=4x, drop<=1%"


def test_what_is_missing_is_told_in_the_words_of_the_target() -> None:
    target = parse_target("speed>=4x, drop<=1%")
    assert target.shortfalls({"speed": 4.2, "drop": -0.002}) == []
    slow, bad = target.shortfalls({"speed": 3.5, "drop": 0.03})
    assert str(slow) == "speed is 3.5x, 0.5x away from speed>=4x"
    assert str(bad) == "drop is 3%, 2% away from drop<=1%"


def test_missing_grows_with_the_distance() -> None:
    """As a share of each limit, so that conditions can be added up; a limit is met where it is touched."""
    target = parse_target("speed>=4x, size<=25%")
    assert target.missing({"speed": 4, "size": 0.25}) == 0
    assert target.missing({"speed": 2, "size": 0.25}) == pytest.approx(0.5)
    assert target.missing({"speed": 2, "size": 0.5}) == pytest.approx(1.5)


def test_what_was_not_measured_is_not_met() -> None:
    target = parse_target("cosine>=0.99")
    assert target.missing({}) == target.missing({"cosine": math.nan}) == math.inf
    assert str(target.shortfalls({})[0]) == "cosine was not measured, and cosine>=0.99 is asked for"


def test_a_drop_of_nothing_can_be_asked_for() -> None:
    """Its limit is 0, of which nothing is a share."""
    target = parse_target("drop<=0%")
    assert target.missing({"drop": 0.0}) == 0
    assert 0 < target.missing({"drop": 0.01}) < math.inf


def test_a_target_is_a_recipes_gates() -> None:
    gates = parse_target(
        "speed>=2x, drop<=1%, size<=30%, cosine>=0.98, agreement>=97%, kl<=0.1, perplexity<=1.05x"
    ).gates()
    assert gates.model_dump(exclude_none=True) == {
        "min_speedup": 2.0,
        "max_metric_drop": 0.01,
        "max_size_ratio": 0.3,
        "min_cosine_mean": 0.98,
        "min_agreement": 0.97,
        "max_kl": 0.1,
        "max_perplexity_ratio": 1.05,
    }


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("SPEED ≥ 4×", "speed>=4x"),
        ("size<=0.25x", "size<=25%"),
        ("agreement>=0.98", "agreement>=98%"),
        (" kl <= 5e-2 ", "kl<=0.05"),
    ],
)
def test_other_spellings(text: str, same: str) -> None:
    assert str(parse_target(text)) == same


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"character 1: '' is no condition; one is like speed>=4x"),
        ("speed>=4x, ", r"character 12: '' is no condition"),
        ("speed=4x", r"character 1: speed goes with >=, not =: speed>=4x"),
        ("speed>=4x, drop>=1%", r"character 12: drop goes with <=, not >=: drop<=1%"),
        ("speed>=4", r"4 without a unit could mean anything here; write it as in speed>=4x"),
        ("drop<=1", r"1 without a unit could mean anything"),
        ("kl<=3%", r"3 in '%' could mean anything"),
        ("quality>=9", r"there is no 'quality' to ask for; there is speed, drop, size"),
        ("speed>=fastx", r"'speed>=fastx' is no condition"),
        ("speed>=1.2.3x", r"'1.2.3' is no number"),
        ("drop<=200%", r"200% is out of range; it goes from 0 to 1"),
        ("speed>=-1x", r"-1x is out of range"),
        ("speed>=2x,speed>=3x", r"character 11: speed is asked for twice"),
        ("speed>=" + "9" * 2000 + "x", r"longer than one can be"),
    ],
)
def test_what_is_not_understood_is_named_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_target(text)


@st.composite
def _conditions(draw: st.DrawFn) -> Condition:
    name = draw(st.sampled_from(sorted(QUANTITIES)))
    quantity = QUANTITIES[name]
    limit = draw(st.floats(max(quantity.least, 1e-3), min(quantity.most, 1e3)))
    return Condition(name, round(limit, 6))


@given(st.lists(_conditions(), min_size=1, unique_by=lambda condition: condition.name))
def test_what_is_written_is_read_back(conditions: list[Condition]) -> None:
    target = Target(tuple(conditions))
    again = parse_target(str(target))
    assert [condition.name for condition in again.conditions] == [condition.name for condition in conditions]
    assert [condition.limit for condition in again.conditions] == pytest.approx([c.limit for c in conditions], rel=1e-6)


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_a_named_error(text: str) -> None:
    with suppress(RecipeError):
        assert parse_target(text).conditions
