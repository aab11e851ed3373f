"""A model's speed behind a whole service. How fast it is is not looked at here; that the figures fit together is."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.corpus import reference_texts
from headrace_cluster.served_speed import ServedPlan, measure_served, synthetic_trace
from headrace_workers.compression.search.served import Arrival, find_measure

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLAN = ServedPlan(saturated_s=0.5, replicas=1)


@pytest.mark.long
def test_at_saturation_and_under_a_recorded_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """And on a server of its own, whatever the environment says of the user's."""
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://nowhere.invalid:6379")
    trace = [Arrival(0.0, "water"), Arrival(0.2, "flows"), Arrival(0.4, "downhill")]
    texts = reference_texts(40)
    figures = measure_served(packaged_encoder(), texts, precision="int8", variant="int8", trace=trace, plan=PLAN)
    assert figures.texts_per_s > 0
    assert (figures.replicas, figures.speedup) == (1, None)
    (load,) = figures.loads
    assert load.texts_per_s == pytest.approx(7.5, rel=0.01)
    assert 0 < load.p50_ms <= load.p99_ms
    assert load.share == pytest.approx(load.texts_per_s / figures.texts_per_s, abs=0.001)
    assert load.failed == 0


def test_loads_of_nobody_are_shares_of_what_can_be_done() -> None:
    """Without a trace: arrivals at so many a second, for as long as the plan says."""
    arrivals = synthetic_trace(["a", "b"], 200.0, ServedPlan(load_s=4.0))
    assert len(arrivals) == 800
    assert arrivals[-1].offset_s == pytest.approx(4.0, rel=0.2)
    assert {arrival.text for arrival in arrivals} == {"a", "b"}


def test_a_model_that_cannot_be_served_is_told() -> None:
    with pytest.raises(HeadraceError, match="nowhere"):
        measure_served("/nowhere", ["a text"], precision="int8", variant="int8", plan=PLAN)


def test_a_search_finds_it() -> None:
    """By the entry point, since the workers may not import the cluster."""
    assert find_measure() is measure_served
