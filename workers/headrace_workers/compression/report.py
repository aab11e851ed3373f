"""What a compression says of itself: every stage with what it did to size, memory, speed and quality, or that it did
nothing. Stored in the artifact as `reports/eval.json`; people see it as a table.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from headrace_workers.compression.evaluation.evaluate import Quality
from headrace_workers.compression.evaluation.speed import Speed
from headrace_workers.compression.recipe import Recipe

__all__ = ["CompressionReport", "Measured", "StageReport", "gains", "metrics_of"]

_SAME_SIZE: Final = 0.02
_SAME_SPEED: Final = 0.1
"""Figures that differ by less are called the same; two measurements of one model's speed differ by as much."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measured(_Part):
    """A model, measured."""

    weights_bytes: int
    """Of the files with tensors."""
    resident_bytes: int
    """Of the tensors in memory, as they are kept while serving."""
    speed: Speed | None = None
    """Against the model as it came; None: not measured."""
    quality: Quality | None = None
    """Against the model as it came; None: it is that."""


class StageReport(_Part):
    """One stage."""

    kind: str
    seconds: float
    """What it took, measuring not counted."""
    notes: list[str] = []
    """What the stage itself had to say."""
    measured: Measured
    gained: str
    """What it brought, in words, against the stage before."""


class CompressionReport(_Part):
    """All of it."""

    source: str
    """The model that was compressed."""
    data: str
    """What was learned from and judged by."""
    node: str
    """Where it was measured."""
    recipe: Recipe
    original: Measured
    stages: list[StageReport]
    metrics: dict[str, float]
    """The result's figures, as gates see them and the artifact keeps them."""
    failures: list[str] = []
    """Gates that were not met; an artifact has none."""
    artifact: str = ""
    """Where it was written."""


def metrics_of(result: Measured, original: Measured) -> dict[str, float]:
    """The figures of a result by name: all numbers, none that was not measured."""
    figures: dict[str, float | None] = {
        "weights_bytes": result.weights_bytes,
        "size_ratio": result.weights_bytes / original.weights_bytes,
        "resident_bytes": result.resident_bytes,
        "resident_ratio": result.resident_bytes / original.resident_bytes,
    }
    if result.speed is not None:
        figures |= {"speedup": result.speed.speedup, "load_s": result.speed.load_s}
    if result.quality is not None:
        figures |= result.quality.model_dump(exclude={"metric_name"})
    return {name: float(value) for name, value in figures.items() if value is not None}


def gains(after: Measured, before: Measured) -> str:
    """What a stage brought, against the stage before it."""
    parts = [
        _change("file", after.weights_bytes / before.weights_bytes),
        _change("memory", after.resident_bytes / before.resident_bytes),
    ]
    if after.speed is not None:
        parts.append(_speed_change(after.speed.speedup / (before.speed.speedup if before.speed else 1.0)))
    if after.quality is not None:
        parts.append(_quality_change(after.quality, before.quality))
    return ", ".join(parts)


def _change(what: str, ratio: float) -> str:
    return f"{what} ×{ratio:.2f}" if abs(ratio - 1) > _SAME_SIZE else f"no gain in {what}"


def _speed_change(ratio: float) -> str:
    if ratio > 1 + _SAME_SPEED:
        return f"{ratio:.2f} times as fast"
    return "no gain in speed" if ratio > 1 - _SAME_SPEED else f"slower: {ratio:.2f} times as fast"


def _quality_change(after: Quality, before: Quality | None) -> str:
    was = after.metric_original if before is None else before.metric
    return f"{after.metric_name} {was:.4g} → {after.metric:.4g}"
