"""The stage `distill`: a smaller student is trained to answer like the model as it came.

The student is the teacher with fewer or narrower layers, such a one with new weights, or another model that reads the
same tokens. Where a classifier's student has no head for the classes it gets one.
"""

from __future__ import annotations

from typing import Final

from headrace.errors import StageError
from headrace_workers.compression.distillation.finetune import classifier_of
from headrace_workers.compression.distillation.imitation import imitate
from headrace_workers.compression.pruning.narrow import student_of
from headrace_workers.compression.recipe import Distill
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, TextSubject, load_subject
from headrace_workers.models.source import find_source

__all__ = ["distill"]

_COMPARED_TEXTS: Final = 256
"""Training texts that student and teacher must read as the same tokens."""


def distill(subject: Subject, stage: Distill, context: StageContext, *, student: Subject | None = None) -> Subject:
    """Make a student and train it.

    Args:
        subject: what the student is made of; not changed.
        stage: the student and how it is trained.
        context: `original` is the teacher.
        student: a student of one's own, instead of the one that the stage describes; trained in place. The way to
            distil a model that is none of transformers' into a smaller one.

    Raises:
        StageError: such a student cannot be made of this model, does not read the same tokens, or training broke.
        ModelLoadError: the other model that is to be the student cannot be loaded.
    """
    if student is None:
        student = _student(subject, stage, context)
    imitate(student, stage.losses, stage.training, context, what="distill")
    return student


def _student(subject: Subject, stage: Distill, context: StageContext) -> Subject:
    if stage.student.model is None:
        return student_of(subject, stage.student, context)
    if not isinstance(subject, TextSubject):
        raise StageError("only a model of transformers can have another one, by path, as its student")
    other = _loaded(stage.student.model, subject)
    _check_tokens(other, subject, list(context.data.train.inputs[:_COMPARED_TEXTS]))
    return other


def _loaded(model: str, teacher: TextSubject) -> TextSubject:
    source = find_source(model)
    if teacher.task == "sequence_classification" and source.task(None) != "sequence_classification":
        names = teacher.config.id2label
        return classifier_of(source, [names[place] for place in sorted(names)])
    return load_subject(source, teacher.task)


def _check_tokens(student: TextSubject, teacher: TextSubject, texts: list[str]) -> None:
    sizes = student.config.vocab_size, teacher.config.vocab_size
    if sizes[0] != sizes[1]:
        raise StageError(
            f"the student's vocabulary has {sizes[0]} tokens, the teacher's {sizes[1]}; they must be the same"
        )
    for text in texts:
        ours, theirs = (one.batch([text]).inputs["input_ids"].tolist() for one in (student, teacher))
        if ours != theirs:
            raise StageError("the student reads other tokens than the teacher; choose one with the teacher's tokenizer")
