"""Running stages, or finding what they came to before.

A stage's result is written as a checkpoint before anything else is done with it, and what goes on from there is what
was read back: a compression that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from headrace_workers.artifacts.artifact import Artifact, Source
from headrace_workers.compression.checkpoint import Record, files_of, open_checkpoint, subject_of, write_subject
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.data import Split
from headrace_workers.compression.fingerprints import digest, fingerprint_of_data
from headrace_workers.compression.recipe import Prune, PruneStructured, Quantize, Stage
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject

__all__ = ["StageFunction", "StageResult", "StageRuns", "needs_data"]

StageFunction = Callable[[Subject, Any, StageContext], Subject]

_STAGES: Final = {
    "distill": "headrace_workers.compression.distillation.distill",
    "prune_structured": "headrace_workers.compression.pruning.structured",
    "prune": "headrace_workers.compression.pruning.unstructured",
    "recover": "headrace_workers.compression.distillation.recover",
    "quantize": "headrace_workers.compression.quantization.quantize",
}
"""Kind of stage to the module that has a function of that name."""
_FORMAT: Final = "1"
"""Of checkpoints: those of another are not used."""


class StageResult(NamedTuple):
    """What a stage came to."""

    subject: Subject
    """As it was read from `artifact`."""
    record: Record
    artifact: Artifact


def needs_data(stage: Stage) -> bool:
    """Whether a stage learns from data, so that some must be given."""
    match stage:
        case Quantize():
            schemes = [stage.weights, *(scheme for scheme in stage.overrides.values() if scheme is not None)]
            static = any(scheme.activations.kind == "static" for scheme in schemes)
            return static or stage.method == "gptq" or stage.smooth is not None
        case Prune():
            return stage.method == "wanda"
        case PruneStructured():
            return stage.importance != "weight" or stage.target == "layers"
        case _:
            return True


@dataclass(frozen=True)
class StageRuns:
    """The stages of one compression."""

    original: Subject
    data: Split
    source: Source
    folder: Path
    """Where checkpoints are; nobody else's."""
    seed: int
    functions: Mapping[str, StageFunction] = field(default_factory=dict)
    """Instead of the usual ones, by kind."""

    @property
    def first_key(self) -> str:
        """What the first stage's result depends on besides the stage."""
        return digest(_FORMAT, self.source.sha256, fingerprint_of_data(self.data), str(self.seed))

    def path(self, number: int, stage: Stage) -> Path:
        """Where a stage's checkpoint is."""
        return self.folder / f"{number + 1:02}-{stage.kind}"

    def result(
        self, number: int, stage: Stage, key: str, before: Subject, say: Callable[[str, float], None]
    ) -> StageResult:
        """A stage's result: from its checkpoint if that fits, else made now and read back.

        Args:
            number: of the stage, from 0.
            stage: what is to be done.
            key: what the result depends on.
            before: what the stage before came to; not changed.
            say: is told what is being done, and the share of it that is done.

        Raises:
            StageError: the stage does not suit the model.
            CompressionError: the disk is full.
        """
        found = open_checkpoint(self.path(number, stage), key)
        artifact, record = found or self._run(number, stage, key, before, say)
        say("loading", 1.0)
        return StageResult(subject_of(artifact, self.original), record, artifact)

    def _run(
        self, number: int, stage: Stage, key: str, before: Subject, say: Callable[[str, float], None]
    ) -> tuple[Artifact, Record]:
        say("starting", 0.0)
        context = StageContext(self.original, self.data, seed=self.seed + number, progress=say)
        started_s = time.perf_counter()
        after = self._function(stage.kind)(before.clone(), stage, context)
        record = Record(key=key, seconds=time.perf_counter() - started_s, notes=context.notes)
        return self._write(self.path(number, stage), after, before, record), record

    def _function(self, kind: str) -> StageFunction:
        function: StageFunction = self.functions.get(kind) or getattr(import_module(_STAGES[kind]), kind)
        return function

    def _write(self, path: Path, subject: Subject, before: Subject, record: Record) -> Artifact:
        shutil.rmtree(path, ignore_errors=True)
        files = files_of(subject, before)
        return write_subject(path, subject, contents_of(subject), files=files, source=self.source, record=record)

    def original_on_disk(self) -> Path:
        """The model as it came, written down: engines load files, and one that was just trained has none."""
        path = self.folder / "00-original"
        if open_checkpoint(path, self.first_key) is None:
            self._write(path, self.original, self.original, Record(key=self.first_key, seconds=0.0, notes=[]))
        return path
