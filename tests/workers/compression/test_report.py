"""Reports: what a stage brought, in words that say plainly when it brought nothing."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_workers.compression.evaluation.evaluate import Quality
from headrace_workers.compression.evaluation.speed import BucketSpeed, Speed
from headrace_workers.compression.report import Measured, gains, metrics_of


def measured(bytes_: int, speedup: float | None = None, metric: float | None = None) -> Measured:
    bucket: dict[str, Any] = {"items": 1, "lowest": 1, "highest": 1, "baseline_items_per_s": 1, "items_per_s": 1}
    quality: dict[str, Any] = {
        "examples": 9,
        "metric_name": "accuracy",
        "metric_low": 0,
        "metric_high": 1,
        "agreement": 1,
    }
    return Measured(
        weights_bytes=bytes_,
        resident_bytes=bytes_,
        speed=None
        if speedup is None
        else Speed(speedup=speedup, rounds=1, load_s=1, buckets={"mixed": BucketSpeed(speedup=speedup, **bucket)}),
        quality=None
        if metric is None
        else Quality(
            metric=metric,
            metric_original=0.9,
            metric_drop=1 - metric / 0.9,
            batch_invariant=True,
            batch_distance=0,
            **quality,
        ),
    )


@pytest.mark.parametrize(
    ("after", "before", "said"),
    [
        (measured(25, 3.0, 0.89), measured(100), "file ×0.25, memory ×0.25, 3.00 times as fast, accuracy 0.9 → 0.89"),
        (
            measured(100, 1.05, 0.9),
            measured(100),
            "no gain in file, no gain in memory, no gain in speed, accuracy 0.9 → 0.9",
        ),
        (measured(50, 1.5, 0.8), measured(100, 3.0, 0.88), "slower: 0.50 times as fast, accuracy 0.88 → 0.8"),
        (measured(100), measured(100, 2.0, 0.9), "no gain in file, no gain in memory"),
    ],
)
def test_what_a_stage_brought(after: Measured, before: Measured, said: str) -> None:
    assert said in gains(after, before)


def test_metrics_are_numbers_and_nothing_that_was_not_measured() -> None:
    found = metrics_of(measured(25, 3.0, 0.81), measured(100))

    assert (found["size_ratio"], found["speedup"], found["batch_invariant"]) == (0.25, 3.0, 1.0)
    assert found["metric_drop"] == pytest.approx(0.1)
    assert "perplexity" not in found
    assert "metric_name" not in found
    assert all(type(value) is float for value in found.values())
    assert "speedup" not in metrics_of(measured(25), measured(100))
