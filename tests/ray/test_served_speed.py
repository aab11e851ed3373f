"""A model's speed behind a whole service. How fast it is is not looked at here; that the figures fit together is."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.corpus import reference_texts
from headrace_cluster.served_speed import ServedPlan, measure_served
from headrace_workers.compression.search.served import Arrival, find_measure

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLAN = ServedPlan(saturated_s=0.5, load_s=0.5, loads=(0.5,), replicas=1)


def test_at_saturation_and_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """And on a server of its own, whatever the environment says of the user's."""
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://nowhere.invalid:6379")
    figures = measure_served(packaged_encoder(), reference_texts(40), precision="int8", variant="int8", plan=PLAN)
    assert figures.texts_per_s > 0
    assert (figures.replicas, figures.speedup) == (1, None)
    (load,) = figures.loads
    assert 0 < load.p50_ms <= load.p99_ms
    assert load.share == pytest.approx(load.texts_per_s / figures.texts_per_s, rel=0.01)
    assert load.failed == 0


def test_a_trace_is_replayed_as_it_was() -> None:
    trace = [Arrival(0.0, "water"), Arrival(0.2, "flows"), Arrival(0.4, "downhill")]
    figures = measure_served(packaged_encoder(), ["a text"], precision="int8", variant="int8", trace=trace, plan=PLAN)
    assert [load.texts_per_s for load in figures.loads] == [pytest.approx(7.5, rel=0.01)]


def test_a_model_that_cannot_be_served_is_told() -> None:
    with pytest.raises(HeadraceError, match="nowhere"):
        measure_served("/nowhere", ["a text"], precision="int8", variant="int8", plan=PLAN)


def test_a_search_finds_it() -> None:
    """By the entry point, since the workers may not import the cluster."""
    assert find_measure() is measure_served
