"""The pipeline: stage after stage from a model to an artifact, judged, and resumed where it was interrupted.

What is judged is what is on disk. A result that fails a gate of its recipe is no artifact: it stays in the work folder,
with the report that says why.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from headrace.errors import ArtifactError, CompressionDataError, GateError, ModelLoadError
from headrace_workers import node
from headrace_workers.artifacts.artifact import Source, Task, sha256_of
from headrace_workers.compression.checkpoint import files_of, write_subject
from headrace_workers.compression.contents import contents_of
from headrace_workers.compression.data import Split, read_examples, split
from headrace_workers.compression.evaluation.gates import check_gates, failures
from headrace_workers.compression.evaluation.judging import Judge, Measures
from headrace_workers.compression.fingerprints import digest, fingerprint_of_module
from headrace_workers.compression.labels import in_the_models_order
from headrace_workers.compression.recipe import Quantize, Recipe, Stage, read_recipe
from headrace_workers.compression.report import CompressionReport, Measured, StageReport, gains, metrics_of
from headrace_workers.compression.sample_texts import SAMPLE_TEXTS, sample_texts
from headrace_workers.compression.stage_runs import StageFunction, StageResult, StageRuns, needs_data
from headrace_workers.compression.subject import Subject, TextSubject, load_subject
from headrace_workers.compression.work_folder import work_folder_held, work_folder_of
from headrace_workers.models.source import find_source

__all__ = ["Measures", "Step", "compress", "compress_subject"]


@dataclass(frozen=True)
class Step:
    """How far a compression is."""

    stage: int
    """From 0."""
    of: int
    kind: str
    what: str
    share: float
    """Of the stage, 0 to 1."""


def _say_nothing(_step: Step) -> None:
    return


def compress(
    model: str | Path,
    recipe: Recipe | str | Path,
    data: str | Path | None,
    output: str | Path,
    *,
    task: Task | None = None,
    work: str | Path | None = None,
    keep_work: bool = False,
    measures: Measures | None = None,
    progress: Callable[[Step], None] = _say_nothing,
) -> CompressionReport:
    """Compress a model of transformers and write the artifact.

    Args:
        model: a Hugging Face folder, a hub id, or a GGUF file.
        recipe: what is to be done; a file of it, or the name of a ready one.
        data: a file of examples (see `read_examples`). None: sentences of Python's documentation, which are good
            enough to judge rounding by, and nothing that learns from data may be asked for.
        output: a directory that must not exist yet.
        task: what the model will be used for; None: what its files say.
        work: where checkpoints are; None: beside the output.
        keep_work: keep them also when all went well.
        measures: how much is measured.
        progress: is told how far it is.

    Raises:
        RecipeError, CompressionDataError, ModelLoadError: what was given cannot be used.
        StageError: a stage does not suit the model.
        GateError: the result is not what the recipe asks for; it lies in the work folder, in `rejected`.
        CompressionError: the disk is full, or another compression works in the same folder.
        ArtifactError: there is something at `output`.
    """
    _check_free(Path(output))
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    _check_data(chosen, data)
    examples = sample_texts() if data is None else read_examples(data)
    source = find_source(model)
    if source.artifact is not None:
        raise ModelLoadError(f"{model} is an artifact already; compress the model that it was made of")
    subject = load_subject(source, task)
    return compress_subject(
        subject,
        split(in_the_models_order(examples, subject)),
        chosen,
        output,
        model=source.folder,
        name=source.name,
        data_name=SAMPLE_TEXTS if data is None else str(data),
        work=work,
        keep_work=keep_work,
        measures=measures,
        progress=progress,
    )


def compress_subject(
    subject: Subject,
    data: Split,
    recipe: Recipe,
    output: str | Path,
    *,
    model: str | Path | None = None,
    name: str = "",
    data_name: str = "given by the program",
    work: str | Path | None = None,
    keep_work: bool = False,
    measures: Measures | None = None,
    progress: Callable[[Step], None] = _say_nothing,
    stages: Mapping[str, StageFunction] | None = None,
) -> CompressionReport:
    """Compress any subject and write the artifact.

    Args:
        subject: the model as it came; not changed.
        data: what to learn from and judge by.
        recipe: what is to be done.
        output: a directory that must not exist yet.
        model: the folder the subject was loaded from; None: it has none, as one that was just trained.
        name: what the report calls the model.
        data_name: what it calls the data.
        work: see `compress`; so are `keep_work`, `measures`, `progress` and the errors.
        keep_work: see `compress`.
        measures: see `compress`.
        progress: see `compress`.
        stages: other functions for some kinds of stage.
    """
    target = Path(output)
    _check_free(target)
    check_gates(recipe.gates, subject.task)
    folder = work_folder_of(target) if work is None else Path(work)
    with work_folder_held(folder, target):
        runs = StageRuns(subject, data, _source_of(subject, model, name), folder, recipe.seed, stages or {})
        at = runs.original_on_disk() if model is None and isinstance(subject, TextSubject) else model
        judge = Judge(subject, at, data.test, measures or Measures(), recipe.seed)
        report, result = _Run(recipe, runs, judge, progress).report(data_name)
        report = _written(report, result, runs.source, target, folder)
    if not keep_work:
        shutil.rmtree(folder)
    return report


def _check_free(output: Path) -> None:
    if output.exists():
        raise ArtifactError(f"{output} exists; an artifact never changes, so write it to another place")


def _check_data(recipe: Recipe, data: str | Path | None) -> None:
    needing = [stage.kind for stage in recipe.stages if needs_data(stage)]
    if data is None and needing:
        raise CompressionDataError(f"the stage {needing[0]} learns from data; give a file of examples with --data")


def _source_of(subject: Subject, model: str | Path | None, name: str) -> Source:
    files = [] if model is None else sorted(Path(model).glob("*.safetensors"))
    sha256 = sha256_of(*files) if files else fingerprint_of_module(subject.module)
    return Source(name=name or str(model or type(subject.module).__name__), sha256=sha256)


@dataclass(frozen=True)
class _Run:
    """All stages of a recipe, one after the other, each measured."""

    recipe: Recipe
    runs: StageRuns
    judge: Judge
    progress: Callable[[Step], None]

    def report(self, data_name: str) -> tuple[CompressionReport, Subject]:
        """Run what has not been run, and say what it came to; its result."""
        original = measured = self.judge.original()
        subject, key = self.runs.original, self.runs.first_key
        reports: list[StageReport] = []
        for number, stage in enumerate(self.recipe.stages):
            key = digest(key, stage.model_dump_json())
            result = self.runs.result(number, stage, key, subject, self._saying(number, stage))
            before, measured = measured, self._measured(number, stage, key, result)
            reports.append(_stage_report(stage, result, measured, before))
            subject = result.subject
        report = CompressionReport(
            source=self.runs.source.name,
            data=data_name,
            node=_node(),
            recipe=self.recipe,
            original=original,
            stages=reports,
            metrics=metrics_of(measured, original),
        )
        return report, subject

    def _saying(self, number: int, stage: Stage) -> Callable[[str, float], None]:
        def say(what: str, share: float) -> None:
            self.progress(Step(number, len(self.recipe.stages), stage.kind, what, min(max(share, 0.0), 1.0)))

        return say

    def _measured(self, number: int, stage: Stage, key: str, result: StageResult) -> Measured:
        """What was measured of a stage's result, now or before an interruption."""
        last = number == len(self.recipe.stages) - 1
        how = digest(key, str(last), repr(self.judge.measures))[:16]
        kept = self.runs.path(number, stage).with_suffix(f".{how}.json")
        try:
            return Measured.model_validate_json(kept.read_bytes())
        except (OSError, ValidationError):
            self._saying(number, stage)("measuring", 1.0)
        measured = self.judge.measure(result.subject, result.artifact, last=last)
        kept.write_text(measured.model_dump_json(indent=1), "utf-8")
        return measured


def _stage_report(stage: Stage, result: StageResult, measured: Measured, before: Measured) -> StageReport:
    return StageReport(
        kind=stage.kind,
        seconds=result.record.seconds,
        notes=result.record.notes,
        measured=measured,
        gained=gains(measured, before),
    )


def _written(
    report: CompressionReport, subject: Subject, source: Source, target: Path, folder: Path
) -> CompressionReport:
    """The artifact with its report, or among what was rejected if a gate fails."""
    failed = failures(report.recipe.gates, report.metrics)
    path = folder / "rejected" if failed else target
    shutil.rmtree(folder / "rejected", ignore_errors=True)
    report = report.model_copy(update={"failures": failed, "artifact": str(path)})
    files = files_of(subject, subject) | {
        "recipe.json": report.recipe.model_dump_json(indent=1).encode(),
        "reports/eval.json": report.model_dump_json(indent=1).encode(),
    }
    lineage = [_told(stage) for stage in report.recipe.stages]
    content = contents_of(subject)
    write_subject(path, subject, content, files=files, source=source, lineage=lineage, metrics=report.metrics)
    if failed:
        raise GateError(f"the result is not what was asked for: {'; '.join(failed)}. It lies in {path}")
    return report


def _told(stage: Stage) -> str:
    """A stage in a line, for an artifact's lineage: its kind, and what is not as it is by default."""
    said = stage.model_dump_json(exclude_defaults=True, exclude={"kind"})
    kind = f"quantize: {stage.weights.dtype}{stage.weights.bits}" if isinstance(stage, Quantize) else stage.kind
    return kind if said == "{}" else f"{kind}, {said}"


def _node() -> str:
    import torch

    found = node.capabilities()
    flags = ", ".join(sorted(found.flags)) or "no vector extensions that matter"
    return f"{found.architecture}, {torch.get_num_threads()} of {found.cores} cores, {flags}"
