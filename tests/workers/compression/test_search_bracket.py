"""Successive halving: which trial comes next."""

from __future__ import annotations

import pytest

from headrace_workers.compression.search.bracket import Bracket, Outcome, Trial, best_first
from headrace_workers.compression.search.pareto import Point


def tried(name: str, quality: float, seconds: float = 1.0, *, missing: float = 0.0, trained: bool = True) -> Outcome:
    return Outcome(Point(name, quality, 2.0, 0.5), missing, seconds, trained)


def test_one_of_a_few_is_carried_to_the_end() -> None:
    """Two are not three, and yet the better one moves up when both were tried; a failed one never does."""
    bracket = Bracket(["a", "b", "broken"])
    bracket.record(Trial("a", 0), tried("a", 0.8))
    assert bracket.next(9) == Trial("b", 0)
    bracket.record(Trial("b", 0), tried("b", 0.9))
    bracket.record(Trial("broken", 0), Outcome(None))
    assert bracket.next(9) == Trial("b", 1)
    bracket.record(Trial("b", 1), tried("b", 0.9))
    assert bracket.next(9) == Trial("b", 2)
    bracket.record(Trial("b", 2), tried("b", 0.9))
    assert bracket.next(9) is None
    assert bracket.complete


def test_the_best_of_three_need_not_wait_for_the_rest() -> None:
    bracket = Bracket(["a", "b", "c", "d"])
    for name, quality in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        bracket.record(Trial(name, 0), tried(name, quality))
    assert bracket.next(9) == Trial("b", 1)


def test_what_would_not_end_in_time_is_not_begun() -> None:
    """Training takes three times as long with three times the steps; what does not train does not."""
    bracket = Bracket(["a"], {Trial("a", 0): tried("a", 0.9, seconds=10)})
    assert bracket.expected_s(Trial("a", 1)) == pytest.approx(30)
    assert bracket.next(29) is None
    assert not bracket.complete
    assert bracket.next(31) == Trial("a", 1)
    untrained = Bracket(["a"], {Trial("a", 0): tried("a", 0.9, seconds=10, trained=False)})
    assert untrained.next(11) == Trial("a", 1)


def test_the_target_counts_before_the_front() -> None:
    near, far = tried("near", 0.5, missing=0.1), tried("far", 0.9, missing=0.2)
    assert best_first([far, near]) == ["near", "far"]
    assert best_first([tried("a", 0.5), tried("b", 0.9)]) == ["b", "a"]
