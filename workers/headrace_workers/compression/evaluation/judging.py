"""Measuring a model in all that it is judged by: files, memory, speed and quality, against the model as it came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_workers.artifacts.artifact import Artifact
from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.evaluate import quality
from headrace_workers.compression.evaluation.speed import (
    Contestant,
    Speed,
    compare,
    engine_contestant,
    module_contestant,
    workload,
)
from headrace_workers.compression.report import Measured
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.kernels.layers import resident_bytes

__all__ = ["Judge", "Measures", "weights_bytes"]

_MIXED = "mixed"


@dataclass(frozen=True)
class Measures:
    """How much measuring a compression is worth."""

    examples: int = 512
    """Of the test part, at most."""
    speed: bool = True
    rounds: int = 5
    """Pairs of runs for each figure of speed."""
    round_tokens: int = 4096
    """Of a round over all lengths."""
    every_stage: bool = True
    """Measure speed and quality after each stage, and not only at the end."""


class Judge:
    """Knows the model as it came, and measures what became of it.

    Args:
        original: the model as it came.
        model: where its files are; only encoders need that.
        examples: of the test part.
        measures: how much is measured.
        seed: which examples, and of the bootstrap.
    """

    def __init__(
        self, original: Subject, model: str | Path | None, examples: Examples, measures: Measures, seed: int
    ) -> None:
        self._original = original
        self._model = model
        self._examples = examples.sample(measures.examples, seed=seed)
        self.measures = measures
        self._seed = seed
        self._baseline: Contestant | None = None
        self._work: dict[str, list[Any]] = {}

    def original(self) -> Measured:
        """The model as it came."""
        in_memory = resident_bytes(self._original.module)
        files = sorted(Path(self._model).glob("*.safetensors")) if self._model is not None else []
        on_disk = sum(path.stat().st_size for path in files)
        return Measured(weights_bytes=on_disk or in_memory, resident_bytes=in_memory)

    def measure(self, subject: Subject, artifact: Artifact, *, last: bool) -> Measured:
        """A stage's result.

        Args:
            subject: as it was loaded from `artifact`.
            artifact: where it is stored.
            last: whether it is the result of all stages, which is always measured, and at all lengths.
        """
        wanted = last or self.measures.every_stage
        return Measured(
            weights_bytes=weights_bytes(artifact),
            resident_bytes=resident_bytes(subject.module),
            speed=self._speed(subject, artifact, last=last) if wanted and self.measures.speed else None,
            quality=quality(subject, self._original, self._examples, self._seed) if wanted else None,
        )

    def _speed(self, subject: Subject, artifact: Artifact, *, last: bool) -> Speed:
        self._baseline = self._baseline or self._contestant(self._original, None)
        self._work = self._work or workload(self._original, self._examples, tokens=self.measures.round_tokens)
        work = self._work if last else {_MIXED: self._work[_MIXED]}
        return compare(self._baseline, self._contestant(subject, artifact.path), work, rounds=self.measures.rounds)

    def _contestant(self, subject: Subject, artifact: Path | None) -> Contestant:
        if not isinstance(subject, TextSubject) or subject.task == "causal_lm":
            return module_contestant(subject)
        files = self._model if artifact is None else artifact
        assert files is not None, "an encoder is measured in its engine, which loads files"
        return engine_contestant(files, task=subject.task)


def weights_bytes(artifact: Artifact) -> int:
    """Bytes of an artifact's tensors on disk."""
    return sum(entry.bytes for path, entry in artifact.manifest.files.items() if path.startswith("blobs/"))
