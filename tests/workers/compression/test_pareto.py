"""The front: what no other candidate beats in quality, speed and size at once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from headrace_workers.compression.search.pareto import Point, front, knee, layers

EXACT = Point("int8", quality=1.0, speed=3.0, size=0.26)
STUDENT = Point("student", quality=0.98, speed=12.0, size=0.09)
POOR = Point("poor", quality=0.97, speed=11.0, size=0.09)


def test_a_candidate_is_out_if_another_beats_it() -> None:
    assert STUDENT.dominates(POOR)
    assert not STUDENT.dominates(EXACT)
    assert not EXACT.dominates(STUDENT)
    assert front([EXACT, POOR, STUDENT]) == [EXACT, STUDENT]


def test_equals_do_not_beat_each_other() -> None:
    twin = Point("twin", EXACT.quality, EXACT.speed, EXACT.size)
    assert front([EXACT, twin]) == [EXACT, twin]


def test_what_was_not_measured_is_never_on_the_front() -> None:
    assert front([Point("?", math.nan, 100.0, 0.01), POOR]) == [POOR]


def test_layers_put_everybody_behind_those_who_beat_him() -> None:
    assert layers([EXACT, POOR, STUDENT]) == [[EXACT, STUDENT], [POOR]]


def test_the_knee_is_where_each_step_costs_most() -> None:
    """A little quality for much speed is a bargain; the last bit of speed for most of the quality is none."""
    points = [
        Point("exact", 1.0, 1.0, 1.0),
        Point("bargain", 0.99, 9.0, 0.2),
        Point("ruined", 0.5, 10.0, 0.15),
    ]
    best = knee(points)
    assert best is not None
    assert best.name == "bargain"


def test_the_knee_of_little() -> None:
    assert knee([]) is None
    assert knee([EXACT]) == EXACT


_VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
_POINTS = st.lists(st.builds(Point, st.uuids().map(str), _VALUES, _VALUES, _VALUES), max_size=12)


@given(_POINTS)
def test_whoever_is_out_is_beaten_by_one_who_is_in(points: list[Point]) -> None:
    best = front(points)
    assert not any(a.dominates(b) for a in best for b in best)
    assert all(any(one.dominates(point) for one in best) for point in points if point not in best)


@given(_POINTS)
def test_every_point_is_in_one_layer(points: list[Point]) -> None:
    assert sorted(p.name for layer in layers(points) for p in layer) == sorted(p.name for p in points)


@given(_POINTS)
def test_the_knee_is_one_of_them(points: list[Point]) -> None:
    assert (knee(points) in points) if points else knee(points) is None
