"""docs/observability.md lists the metrics that there are, with their labels."""

from __future__ import annotations

from pathlib import Path

from headrace.telemetry.metric_names import METRICS, Metric

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


def test_every_metric_has_its_row() -> None:
    """As it is declared, and there are no others."""
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `headrace_")]
    assert rows == [_row(metric) for metric in METRICS.values()]


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"
