"""The model that is searched for, and what can be done with it: proposals, trials by the pipeline, final judgements.

Trials are judged on the validation part alone. The test part is for finalists, of which it chooses none: what a search
promises was never among what it chose by.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from headrace_workers import node
from headrace_workers.artifacts.artifact import open_artifact, sha256_of
from headrace_workers.compression.data import Split
from headrace_workers.compression.evaluation.evaluate import quality
from headrace_workers.compression.evaluation.judging import Measures
from headrace_workers.compression.fingerprints import fingerprint_of_data
from headrace_workers.compression.pipeline import Step, compress_subject
from headrace_workers.compression.quantization.sensitivity import sensitivities
from headrace_workers.compression.recipe import Distill, Recipe, Recover, Training
from headrace_workers.compression.search.candidates import Candidate, Effort, plain, propose, shapes_needed
from headrace_workers.compression.search.front import write_whole
from headrace_workers.compression.search.journal import Question
from headrace_workers.compression.search.latency_table import (
    LatencyTable,
    LinearUse,
    load_table,
    measure_shapes,
    probe_node,
    uses_of,
)
from headrace_workers.compression.search.profile import profile_of
from headrace_workers.compression.search.served import Arrival, MeasureServed, ServedFigures
from headrace_workers.compression.search.study_search import Progress, Tryout
from headrace_workers.compression.search.target import Target
from headrace_workers.compression.subject import TextSubject
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source

__all__ = ["FIGURES", "ModelStudy", "figures_of", "scaled"]

FIGURES: Final = {
    "speed": "speedup",
    "size": "size_ratio",
    "drop": "metric_drop",
    "cosine": "cosine_mean",
    "agreement": "agreement",
    "kl": "kl",
    "perplexity": "perplexity_ratio",
}
"""What targets call a figure, and what artifacts' metrics call it."""
_QUALITY: Final = frozenset(FIGURES) - {"speed", "size"}
_LEAST_EXAMPLES: Final = 64
"""A glimpse is judged by as many at least: a tenth of little says nothing."""
_LEAST_TRAINING: Final = 256
"""Examples that importances and ranges are told from, however short the training."""
_MEASURES: Final = Measures(rounds=3, round_tokens=2048, every_stage=False)
"""Of a trial: candidates differ by more than the noise of that."""
_SENSITIVITY_EXAMPLES: Final = 48
_RANKING_FILE: Final = "sensitivity.json"


def figures_of(metrics: dict[str, float]) -> dict[str, float]:
    """An artifact's metrics by the names of targets; what was not measured is left out."""
    return {name: metrics[metric] for name, metric in FIGURES.items() if metrics.get(metric) is not None}


def scaled(recipe: Recipe, fidelity: float) -> Recipe:
    """A recipe with a share of its training steps, one at least."""

    def shortened(stage: Distill | Recover) -> Distill | Recover:
        steps = max(1, round(stage.training.steps * fidelity))
        return stage.model_copy(update={"training": stage.training.model_copy(update={"steps": steps})})

    stages = [shortened(stage) if isinstance(stage, Distill | Recover) else stage for stage in recipe.stages]
    return recipe.model_copy(update={"stages": stages})


def trainings(recipe: Recipe) -> list[Training]:
    """How its stages train."""
    return [stage.training for stage in recipe.stages if isinstance(stage, Distill | Recover)]


@dataclass
class ModelStudy:
    """See `headrace_workers.compression.search.study_search.Study`.

    Args:
        subject: the model as it came.
        data: what to learn from, choose by and judge by.
        folder: of the search; latency tables are kept in it.
        effort: how long candidates train at full fidelity.
        seed: of everything.
        threads: of a replica; speeds are measured with as many.
        trainable: whether the data is good enough to train with.
        served: what measures behind a service; None: there is none.
        trace: arrivals to replay there.
        rank: whether layers are ranked by how sensitive they are, which takes an evaluation for each.
        measures: how much a trial measures.
        most: how many candidates are proposed.
    """

    subject: TextSubject
    data: Split
    folder: Path
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    threads: int = 1
    trainable: bool = True
    served: MeasureServed | None = None
    trace: Sequence[Arrival] = ()
    rank: bool = True
    measures: Measures = _MEASURES
    most: int = 12

    def __post_init__(self) -> None:
        node.prepare_process(self.threads)
        self._profile = profile_of(self.subject.module)
        self._table = load_table(self.folder / "latency", probe_node(self.threads))

    @property
    def model(self) -> str:
        """See `Study`."""
        return self.subject.source.name

    @cached_property
    def question(self) -> Question:
        """See `Study`."""
        files = sorted(self.subject.source.folder.glob("*.safetensors"))
        effort = {
            "distill": self.effort.distill_steps,
            "recover": self.effort.recover_steps,
            "batch": self.effort.batch_size,
        }
        return Question(
            source_sha256=sha256_of(*files),
            data_sha256=fingerprint_of_data(self.data),
            seed=self.seed,
            node=probe_node(self.threads).fingerprint,
            effort=effort,
        )

    @property
    def table(self) -> LatencyTable:
        """See `Study`."""
        return self._table

    @property
    def original(self) -> list[LinearUse]:
        """See `Study`."""
        return self._profile.uses()

    def first(self, progress: Progress) -> Candidate:
        """See `Study`."""
        self._time(self.original, progress)
        return plain(self._profile, self.table, seed=self.seed)

    def propose(self, target: Target, rest_ms: float, progress: Progress) -> list[Candidate]:
        """See `Study`."""
        self._time(shapes_needed(self._profile, trainable=self.trainable), progress)
        return propose(
            self._profile,
            self.table,
            target,
            ranking=self._ranking(progress) if self.rank else (),
            trainable=self.trainable,
            effort=self.effort,
            seed=self.seed,
            most=self.most,
            rest_ms=rest_ms,
        )

    def try_out(self, candidate: Candidate, fidelity: float, artifact: Path, progress: Progress) -> Tryout:
        """See `Study`."""
        shutil.rmtree(artifact, ignore_errors=True)  # of a search that was killed between writing and noting it down

        def step(now: Step) -> None:
            progress(f"{now.kind}: {now.what}", (now.stage + now.share) / now.of)

        recipe = scaled(candidate.recipe, fidelity)
        report = compress_subject(
            self.subject,
            self._glimpse(recipe, fidelity),
            recipe,
            artifact,
            model=self.subject.source.folder,
            name=self.model,
            measures=self.measures,
            progress=step,
        )
        uses = self._uses(artifact)
        self._time(uses, progress)  # what is cut where it is least important has widths that nobody foresaw
        return Tryout(figures_of(report.metrics), uses)

    def judge(self, artifact: Path | None) -> tuple[dict[str, float], ServedFigures | None]:
        """See `Study`."""
        if artifact is None:
            return {}, self._behind_service(self.subject.source.folder, "fp32", "int8")
        source = find_source(artifact)
        variant = open_artifact(artifact).variant()
        subject = TextSubject(load_model(source, self.subject.task, variant=variant.name), source)
        found = quality(subject, self.subject, self.data.test, self.seed).model_dump(exclude={"metric_name"})
        held_out = {name: value for name, value in figures_of(found).items() if name in _QUALITY}
        return held_out, self._behind_service(artifact, "int8" if variant.layers else "fp32", variant.name)

    def _behind_service(self, model: Path, precision: str, variant: str) -> ServedFigures | None:
        if self.served is None or self.subject.task in ("causal_lm", "custom"):
            return None
        texts = [str(text) for text in self.data.test.inputs]
        return self.served(model, texts, precision=precision, variant=variant, trace=self.trace)

    def _glimpse(self, recipe: Recipe, fidelity: float) -> Split:
        """What a trial may see: as much to train with as its steps can use, a share of the validation part to judge."""
        judging = max(_LEAST_EXAMPLES, round(len(self.data.validation) * fidelity))
        training = max([_LEAST_TRAINING, *(one.steps * one.batch_size for one in trainings(recipe))])
        judges = self.data.validation.sample(judging, seed=self.seed)
        return Split(self.data.train.sample(training, seed=self.seed), judges, judges)

    def _time(self, uses: Sequence[LinearUse], progress: Progress) -> None:
        """Have the table hold these layers. It is kept layer by layer: a search that is cut short times none again."""
        for place, use in enumerate(uses):
            progress("timing layers", place / len(uses))
            longer = self._table.extended([use], measure_shapes)
            if longer is not self._table:
                longer.write(self.folder / "latency")
                self._table = longer

    def _uses(self, artifact: Path) -> list[LinearUse]:
        variant = open_artifact(artifact).variant()
        return uses_of(load_model(find_source(artifact), self.subject.task, variant=variant.name).module)

    def _ranking(self, progress: Progress) -> list[str]:
        """Names of layers, the most sensitive first; measured once, and kept in the folder."""
        path = self.folder / _RANKING_FILE
        try:
            return [str(name) for name in json.loads(path.read_bytes())]
        except (OSError, ValueError):
            examples = self.data.validation.sample(_SENSITIVITY_EXAMPLES, seed=self.seed)
            ranking = [one.module for one in sensitivities(self.subject, examples, progress=progress)]
        write_whole(path, json.dumps(ranking, indent=1))
        return ranking
