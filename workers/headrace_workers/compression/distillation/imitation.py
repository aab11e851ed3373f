"""Imitation: a student that is trained to answer like a teacher, whatever the two are.

Distilling and recovering are the same training; they differ in where the student comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.distillation.losses import ImitationLoss, Seen, Terms
from headrace_workers.compression.distillation.training import TrainingReport, fast_products, text_lengths, train
from headrace_workers.compression.pruning.layout import layout_of
from headrace_workers.compression.recipe import Losses, Training
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Answers, Batch, Subject

__all__ = ["Imitation", "Teacher", "imitate"]

_VALIDATED: Final = 256
"""Validation examples that decide which weights were best."""
_MOST_POSITIONS: Final = 4096
"""Positions, padding included, that go forward and back at a time; what is more goes in pieces."""
_MOST_KEPT_BYTES: Final = 512 << 20
"""Answers of the teacher's that are kept."""
_ROW_PER_EXAMPLE: Final = ("embedding", "sequence_classification", "custom")


def imitate(
    student: Subject, losses: Losses, training: Training, context: StageContext, *, what: str, held: Any = None
) -> TrainingReport:
    """Train a student, in place, to answer like the model as it came, and note what came of it.

    Args:
        student: what is trained. Nothing of it is the original's.
        losses: what it is to match.
        training: how long, how fast.
        context: the teacher, the data, the seed.
        what: what the progress is called.
        held: entered while training; keeps zeros zero.

    Raises:
        StageError: the losses do not fit these models, or training broke.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        task = Imitation(student, context.original, context.data.train, context.data.validation, losses)
    before = task.validation_terms()
    report = train(task, training, seed=context.seed, progress=lambda share: context.progress(what, share), held=held)
    after = task.validation_terms()
    told = ", ".join(f"{name} {before[name]:.4g} → {value:.4g}" for name, value in after.items())
    context.note(f"{what}: {told} on validation data; best after {report.best_step} of {report.steps} steps")
    if report.best_step == 0:
        context.note(f"{what}: training gained nothing; the weights are those it began with")
    return report


class Teacher:
    """A model that is asked and never changed. What it said of an example is kept, where that is one row."""

    def __init__(self, subject: Subject, *, hidden: bool, relations: bool) -> None:
        self.subject = subject
        self._hidden, self._relations = hidden, relations
        self._keeps = subject.task in _ROW_PER_EXAMPLE and not hidden and not relations
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._room = _MOST_KEPT_BYTES

    def __call__(self, batch: Batch, keys: Sequence[tuple[str, int]]) -> Seen:
        """What it says of a batch, without gradients; `keys` are the examples' names."""
        if self._keeps and all(key in self._kept for key in keys):
            return Seen(Answers(torch.stack([self._kept[key] for key in keys])))
        with torch.no_grad():
            seen = observed(self.subject, batch, hidden=self._hidden, relations=self._relations)
        if self._keeps:
            self._keep(keys, seen.answers.rows)
        return seen

    def _keep(self, keys: Sequence[tuple[str, int]], rows: Tensor) -> None:
        for key, row in zip(keys, rows, strict=True):
            if key not in self._kept and self._room >= row.nbytes:
                self._kept[key] = row.clone()
                self._room -= row.nbytes


class Imitation:
    """The `TrainingTask` of a student with a teacher.

    Args:
        student: what is trained.
        teacher: what it is to answer like; put in eval mode.
        train: examples to train with.
        validation: examples to choose weights by; the first 256.
        losses: what is to be matched.

    Raises:
        StageError: the losses do not fit these models.
    """

    def __init__(
        self, student: Subject, teacher: Subject, train: Examples, validation: Examples, losses: Losses
    ) -> None:
        teacher.module.eval()
        self._hidden, self._relations = losses.hidden > 0, losses.relations > 0
        self._student = student
        self._teacher = Teacher(teacher, hidden=self._hidden, relations=self._relations)
        self._examples = {"train": train, "validation": validation.take(range(min(_VALIDATED, len(validation))))}
        self.module = student.module
        self.lengths = text_lengths(train)
        self.beside = self._loss(losses)

    def backward(self, places: Sequence[int]) -> float:
        """See `TrainingTask`."""
        whole = self._batch("train", places)
        total = 0.0
        for part, at in self._pieces(whole):
            share = self._rows(part) / self._rows(whole)
            with fast_products():
                student = self._observed(part)
            loss = self._terms(part, student, "train", places[at : at + len(part)]).total * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def validation_loss(self) -> float:
        """See `TrainingTask`."""
        return sum(share * terms.total.item() for share, terms in self._validated())

    def validation_terms(self) -> dict[str, float]:
        """Each term of the loss on validation data, in eval mode."""
        self.module.eval()
        sums: dict[str, float] = {}
        with torch.no_grad():
            for share, terms in self._validated():
                for name, value in terms.parts.items():
                    sums[name] = sums.get(name, 0.0) + share * value
        return sums

    def _loss(self, losses: Losses) -> ImitationLoss:
        batch = self._batch("train", range(min(2, len(self._examples["train"]))))
        with torch.no_grad():
            student = self._observed(batch)
            teacher = observed(self._teacher.subject, batch, hidden=self._hidden, relations=self._relations)
        return ImitationLoss(losses, embedding=self._student.task == "embedding", student=student, teacher=teacher)

    def _validated(self) -> Iterator[tuple[float, Terms]]:
        """The terms of each batch of validation data, and its share of it."""
        count, size = len(self._examples["validation"]), 32
        for start in range(0, count, size):
            places = range(start, min(start + size, count))
            whole = self._batch("validation", places)
            for part, at in self._pieces(whole):
                share = len(places) / count * self._rows(part) / self._rows(whole)
                yield share, self._terms(part, self._observed(part), "validation", places[at : at + len(part)])

    def _terms(self, batch: Batch, student: Seen, of: str, places: Sequence[int]) -> Terms:
        teacher = self._teacher(batch, [(of, place) for place in places])
        terms: Terms = self.beside(student, teacher, batch.valid)
        return terms

    def _observed(self, batch: Batch) -> Seen:
        return observed(self._student, batch, hidden=self._hidden, relations=self._relations)

    def _batch(self, of: str, places: Sequence[int]) -> Batch:
        return next(iter(self._student.batches(self._examples[of].take(places), len(places))))

    def _pieces(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """Parts of a batch that fit into memory, and where each begins. Embeddings are compared across the batch."""
        size = len(batch)
        if self._student.task != "embedding":
            size = min(size, max(1, _MOST_POSITIONS // batch.valid.shape[1]))
        for start in range(0, len(batch), size):
            yield _cut(batch, slice(start, start + size)), start

    def _rows(self, batch: Batch) -> int:
        if self._student.task == "causal_lm":
            return max(1, int(batch.valid[:, 1:].sum()))
        return int(batch.valid.sum()) if self._student.task == "token_classification" else len(batch)


def observed(subject: Subject, batch: Batch, *, hidden: bool, relations: bool) -> Seen:
    """What a model says of a batch, with what went on within it where that is asked for."""
    if not relations:
        return Seen(subject.answers(batch, hidden=hidden))
    with _listening(subject.module) as heard:
        answers = subject.answers(batch, hidden=hidden)
    return Seen(answers, tuple(heard[part] for part in ("query", "key", "value")))


@contextmanager
def _listening(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What comes out of the last attention's query, key and value, while this is entered."""
    heard: dict[str, Tensor] = {}

    def keep(part: str) -> Any:
        return lambda _module, _inputs, output: heard.__setitem__(part, output)

    attentions = layout_of(module).attentions
    if not attentions:
        raise StageError(
            f"the loss 'relations' needs attention with a query, a key and a value of its own; "
            f"{type(module).__name__} has none that is known"
        )
    hooks = [
        module.get_submodule(getattr(attentions[-1], part)).register_forward_hook(keep(part))
        for part in ("query", "key", "value")
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _cut(batch: Batch, part: slice) -> Batch:
    inputs = {name: tensor[part] for name, tensor in batch.inputs.items()}
    return replace(
        batch, inputs=inputs, valid=batch.valid[part], labels=None if batch.labels is None else batch.labels[part]
    )
