"""Gates: pure decisions on figures."""

from __future__ import annotations

import pytest

from headrace.errors import RecipeError
from headrace_workers.compression.evaluation.gates import check_gates, failures
from headrace_workers.compression.recipe import Gates

GOOD = {"metric_drop": 0.01, "size_ratio": 0.26, "speedup": 2.5, "batch_invariant": 1.0, "agreement": 0.99}


def test_a_result_that_is_good_enough() -> None:
    gates = Gates(max_metric_drop=0.02, max_size_ratio=0.3, min_speedup=2, batch_invariant=True)

    assert failures(gates, GOOD) == []


def test_a_failure_says_value_limit_and_what_to_change() -> None:
    found = failures(Gates(min_speedup=3, max_size_ratio=0.2), GOOD)

    assert len(found) == 2
    assert found[0].startswith("min_speedup: speedup is 2.5, below 3; ")
    assert found[1].startswith("max_size_ratio: size_ratio is 0.26, above 0.2; ")
    assert "fewer bits" in found[1]


def test_a_limit_itself_is_good_enough() -> None:
    assert failures(Gates(max_metric_drop=0.01, min_speedup=2.5), GOOD) == []


def test_what_got_better_passes() -> None:
    assert failures(Gates(max_metric_drop=0), {"metric_drop": -0.02}) == []


def test_what_was_not_measured_fails() -> None:
    assert "was not measured" in failures(Gates(min_agreement=0.5), {"agreement": None})[0]
    assert "was not measured" in failures(Gates(min_agreement=0.5), {})[0]


def test_what_is_not_a_number_fails() -> None:
    nan = float("nan")

    assert len(failures(Gates(max_metric_drop=1, min_speedup=0.1), {"metric_drop": nan, "speedup": nan})) == 2


def test_answers_that_depend_on_batch_mates() -> None:
    varying = GOOD | {"batch_invariant": 0.0, "batch_distance": 0.15}

    assert "changes by 0.15" in failures(Gates(batch_invariant=True), varying)[0]
    assert failures(Gates(), varying) == failures(Gates(batch_invariant=False), varying) == []


def test_gates_that_no_result_could_pass_are_refused_at_once() -> None:
    check_gates(Gates(min_cosine_mean=0.9), "embedding")
    check_gates(Gates(max_perplexity_ratio=1.01, max_kl=0.1), "causal_lm")
    with pytest.raises(RecipeError, match=r"gates\.min_cosine_mean .* sequence_classification has no cosine_mean"):
        check_gates(Gates(min_cosine_mean=0.9), "sequence_classification")
    with pytest.raises(RecipeError, match=r"gates\.max_perplexity_ratio"):
        check_gates(Gates(max_perplexity_ratio=1.1), "embedding")
    with pytest.raises(RecipeError, match=r"gates\.max_kl"):
        check_gates(Gates(max_kl=1), "embedding")
