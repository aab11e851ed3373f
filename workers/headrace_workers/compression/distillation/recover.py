"""The stage `recover`: what is left of a model is trained to answer like the model as it came."""

from __future__ import annotations

from headrace_workers.compression.distillation.imitation import imitate
from headrace_workers.compression.pruning.unstructured import hold_zeros, masks_of
from headrace_workers.compression.recipe import Recover
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject

__all__ = ["recover"]


def recover(subject: Subject, stage: Recover, context: StageContext) -> Subject:
    """Train a pruned model, in place. Weights that were set to zero stay zero, widths stay what they are.

    Args:
        subject: what is left; trained in place and returned.
        stage: how it is trained.
        context: `original` is the teacher.

    Raises:
        StageError: the losses do not fit this model, or training broke.
    """
    held = hold_zeros(subject.module, masks_of(subject))
    imitate(subject, stage.losses, stage.training, context, what="recover", held=held)
    return subject
