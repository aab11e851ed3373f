"""int8 and nothing else, in seconds: the whole artifact without data, measuring or work folder.

`headrace compress` does the same with the recipe `int8`, and says what it came to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.errors import ModelLoadError
from headrace_workers.artifacts.artifact import Artifact, Source, Task, sha256_of
from headrace_workers.compression.checkpoint import files_of, write_subject
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.quantization.quantize import LEFT_ALONE, QuantizationReport, quantize_model
from headrace_workers.compression.subject import load_subject
from headrace_workers.models.source import find_source

__all__ = ["build_artifact"]


def build_artifact(
    model: str | Path, destination: str | Path, *, task: Task | None = None, left_alone: Sequence[str] = LEFT_ALONE
) -> Artifact:
    """Quantize a model to int8 and write it as an artifact with the one variant `int8`.

    Args:
        model: a Hugging Face folder or a hub id.
        destination: a directory that must not exist yet.
        task: what the model will be used for; None: what its files say.
        left_alone: patterns of the names of modules that keep full precision.

    Raises:
        ModelLoadError: the model cannot be loaded, or is an artifact already.
        ArtifactError: there is something at `destination`.
        CompressionError: the disk is full.
    """
    source = find_source(model)
    if source.artifact is not None:
        raise ModelLoadError(f"{model} is an artifact already")
    subject = load_subject(source, task)
    report = quantize_model(subject.module, left_alone=left_alone)
    return write_subject(
        Path(destination),
        subject,
        contents_of(subject),
        files=files_of(subject, subject),
        source=Source(name=source.name, sha256=sha256_of(*sorted(source.folder.glob("*.safetensors")))),
        lineage=["quantize: int8, round to nearest, per output channel and per embedding row"],
        metrics=_metrics(report),
    )


def _metrics(report: QuantizationReport) -> dict[str, float]:
    return {
        "bytes_before": float(report.bytes_before),
        "bytes_after": float(report.bytes_after),
        "layers_quantized": float(len(report.schemes)),
    }
