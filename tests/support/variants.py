"""An artifact of two variants, as compression makes them: full precision, and int8; small, and quick to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace_workers.artifacts.artifact import Artifact, Source
from headrace_workers.compression.checkpoint import files_of, write_subject
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.merging import merge_artifacts
from headrace_workers.compression.quantization.quantize import quantize_model
from headrace_workers.compression.subject import load_subject
from headrace_workers.models.source import find_source
from support.tiny_model import write_tiny_model

__all__ = ["FAST", "FULL", "two_variants"]

FULL, FAST = "fp32", "int8"


def two_variants(folder: Path, **settings: Any) -> Artifact:
    """Write it into `folder`, of a tiny model with these settings; the figures of its variants are made up."""
    model = write_tiny_model(folder / "model", **settings)
    parts = [
        _part(model, folder / FULL, int8=False, metrics={"metric_drop": 0.0, "speedup": 1.0}),
        _part(model, folder / FAST, int8=True, metrics={"metric_drop": 0.01, "speedup": 3.0}),
    ]
    return merge_artifacts(parts, folder / "artifact")


def _part(model: Path, path: Path, *, int8: bool, metrics: dict[str, float]) -> Path:
    subject = load_subject(find_source(model), "embedding")
    if int8:
        quantize_model(subject.module)
    source = Source(name="tiny", sha256="0" * 64)
    files = files_of(subject, subject)
    return write_subject(path, subject, contents_of(subject), files=files, source=source, metrics=metrics).path
