"""A compression's report as a table: every stage, what it came to, what it brought, and what it had to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from headrace.cli.rendering import visible

if TYPE_CHECKING:
    from headrace_workers.compression.report import CompressionReport, Measured

__all__ = ["report_lines"]


def report_lines(report: CompressionReport) -> list[RenderableType]:
    """What a person is shown of it."""
    table = Table("stage", "on disk", "in memory", "speed", "quality", "what it brought", box=None, header_style="dim")
    table.add_row("as it came", *_sizes(report.original), "1.00×", "", "")
    for stage in report.stages:
        table.add_row(stage.kind, *_sizes(stage.measured), *_figures(stage.measured), stage.gained)
    notes = [_note(stage.kind, note) for stage in report.stages for note in stage.notes]
    judged = f"judged by: {report.data}"
    return [table, *notes, visible(judged), f"measured on: {report.node}", visible(f"artifact: {report.artifact}")]


def _note(kind: str, note: str) -> str:
    return visible(note if note.startswith(f"{kind}:") else f"{kind}: {note}")


def _sizes(measured: Measured) -> tuple[str, str]:
    return f"{measured.weights_bytes / 1e6:,.1f} MB", f"{measured.resident_bytes / 1e6:,.1f} MB"


def _figures(measured: Measured) -> tuple[str, str]:
    speed = "" if measured.speed is None else f"{measured.speed.speedup:.2f}×"
    if measured.quality is None:
        return speed, ""
    quality = measured.quality
    parts = [f"{quality.metric_name} {quality.metric:.4f} ({quality.metric_low:.4f}–{quality.metric_high:.4f})"]
    if quality.cosine_mean is not None:
        parts.append(f"cosine {quality.cosine_mean:.4f}")
    if quality.kl is not None:
        parts.append(f"KL {quality.kl:.2g}")
    return speed, ", ".join([*parts, f"agreement {quality.agreement:.1%}"])
