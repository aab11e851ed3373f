"""`headrace bench engine`: every precision's speed, and how far its answers are from the first one's."""

from __future__ import annotations

from headrace_cluster.bench.engine import EnginePlan, run_engine


def test_it_compares_precisions() -> None:
    said: list[str] = []
    report = run_engine(EnginePlan(texts=16, batch_jobs=8, rounds=1), said.append)
    assert (report["device"], report["texts"]) == ("cpu", 16)
    exact, int8 = report["precisions"]
    assert (exact["precision"], exact["speedup"], exact["cosine_min"]) == ("fp32", 1.0, 1.0)
    assert 0.97 < int8["cosine_min"] <= int8["cosine_mean"] < 1
    assert all(row["texts_per_s"] > 0 and row["tokens_per_s"] > row["texts_per_s"] for row in (exact, int8))
    assert said[-1] == "round 1 of 1"
