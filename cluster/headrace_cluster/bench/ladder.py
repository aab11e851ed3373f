"""From a padded fp32 classifier to a small int8 one in several replicas, rung by rung, as FastFormers' table 3 has it.

The teacher is all-MiniLM-L6-v2, fine-tuned on the documentation of eight libraries: which of them a paragraph is from.
Every rung runs the same texts in processes of its own; rungs take turns, round by round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headrace_cluster.bench.documentation import documentation_examples
from headrace_cluster.bench.inprocess import Layout, Manner, measure_in_process
from headrace_workers.compression.data import split
from headrace_workers.compression.distillation.finetune import save_classifier, train_classifier
from headrace_workers.compression.evaluation.judging import Measures
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import Recipe, Training, read_recipe
from headrace_workers.compression.report import CompressionReport
from headrace_workers.compression.subject import load_subject
from headrace_workers.models.source import find_source

__all__ = ["LadderPlan", "measure_student"]

_WHOLE: Final = Layout(1, 2)
_SPLIT: Final = Layout(2, 1)


@dataclass(frozen=True, slots=True)
class LadderPlan:
    """How much to train and to measure.

    Args:
        per_label: paragraphs of each library, for training, validation and judging together.
        teacher: how the teacher is fine-tuned.
        student_steps: of each training of the student's stages; None: as the recipe has it.
        timed_texts: how many the speed is measured with.
        padded_texts: how many of those the padded rung runs, which is slow.
        rounds: how often each rung runs over its texts.
    """

    per_label: int = 1000
    teacher: Training = field(default_factory=lambda: Training(steps=220, learning_rate=2e-4))
    student_steps: int | None = None
    timed_texts: int = 1024
    padded_texts: int = 256
    rounds: int = 3

    @classmethod
    def quick(cls) -> LadderPlan:
        """A short look; its student has learned next to nothing."""
        teacher = Training(steps=20, learning_rate=2e-4)
        return cls(per_label=60, teacher=teacher, student_steps=10, timed_texts=128, padded_texts=32, rounds=1)

    @property
    def recipe(self) -> Recipe:
        """The ready recipe `smallest`, without its gates: a benchmark tells, and does not refuse."""
        recipe = read_recipe("smallest")
        stages = [stage.model_copy(update=self._shorter(stage)) for stage in recipe.stages]
        return Recipe(seed=recipe.seed, stages=stages)

    def _shorter(self, stage: Any) -> dict[str, Any]:
        training = getattr(stage, "training", None)
        if training is None or self.student_steps is None:
            return {}
        return {"training": training.model_copy(update={"steps": self.student_steps})}


@dataclass(frozen=True)
class _Rung:
    name: str
    model: Path
    manner: Manner = "packed"
    layout: Layout = _WHOLE


def measure_student(model: Path, folder: Path, plan: LadderPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """Train the teacher, make the student, and climb.

    Args:
        model: the encoder that the teacher is made of.
        folder: where models may be written.
        plan: how much to train and to measure.
        say: is told what is being done.
    """
    data = split(documentation_examples(per_label=plan.per_label))
    say("training the teacher")
    teacher = folder / "teacher"
    save_classifier(train_classifier(find_source(str(model)), data, plan.teacher), teacher)
    work = folder / "student.work"
    report = compress_subject(
        load_subject(find_source(str(teacher))),
        data,
        plan.recipe,
        folder / "student",
        model=teacher,
        work=work,
        keep_work=True,
        measures=Measures(examples=len(data.test)),
        progress=lambda step: say(f"{step.kind}: {step.what}"),
    )
    texts = [str(text) for text in data.test] * (1 + plan.timed_texts // len(data.test))
    rungs = _climbed(_rungs(teacher, work, folder / "student", report), texts[: plan.timed_texts], plan, say)
    return _figures(report) | {
        "ladder_speedup": rungs[-1]["texts_per_s"] / rungs[0]["texts_per_s"],
        "ladder": rungs,
        "stages": _stages(report),
    }


def _rungs(teacher: Path, work: Path, student: Path, report: CompressionReport) -> list[_Rung]:
    between = [
        _Rung(stage.kind, path)
        for stage, path in zip(report.stages[:-1], sorted(work.glob("[0-9][0-9]-*/")), strict=False)
        if stage.kind != "prune_structured"  # it is as fast as what recovers it
    ]
    return [
        _Rung("fp32, padded", teacher, "padded"),
        _Rung("fp32, packed", teacher),
        *between,
        _Rung("quantize", student),
        _Rung("several replicas", student, layout=_SPLIT),
    ]


def _climbed(
    rungs: Sequence[_Rung], texts: Sequence[str], plan: LadderPlan, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {rung.name: [] for rung in rungs}
    for turn in range(plan.rounds):
        for rung in rungs:
            say(f"ladder, round {turn + 1}: {rung.name}")
            some = texts[: plan.padded_texts] if rung.manner == "padded" else texts
            precision = "fp32" if rung.model.name == "teacher" else "stored"
            rates[rung.name].append(
                measure_in_process(str(rung.model), some, layout=rung.layout, precision=precision, manner=rung.manner)
            )
    best = {name: statistics.median(found) for name, found in rates.items()}
    bottom = best[rungs[0].name]
    return [{"rung": name, "texts_per_s": rate, "times_the_first": rate / bottom} for name, rate in best.items()]


def _figures(report: CompressionReport) -> dict[str, Any]:
    metrics = report.metrics
    return {
        "student_speedup": metrics["speedup"],
        "student_size_ratio": metrics["size_ratio"],
        "student_accuracy_kept": metrics["metric"] / metrics["metric_original"],
        "teacher_accuracy": metrics["metric_original"],
        "student_accuracy": metrics["metric"],
    }


def _stages(report: CompressionReport) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage.kind,
            "megabytes": stage.measured.weights_bytes / 1e6,
            "accuracy": stage.measured.quality.metric if stage.measured.quality else None,
            "times_as_fast": stage.measured.speed.speedup if stage.measured.speed else None,
            "seconds": stage.seconds,
        }
        for stage in report.stages
    ]
