"""Recovery: a model that lost parts of itself learns to answer as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from headrace.errors import StageError
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.distillation.recover import recover
from headrace_workers.compression.pruning.structured import prune_structured
from headrace_workers.compression.pruning.unstructured import masks_of, prune
from headrace_workers.compression.recipe import Losses, Prune, PruneStructured, Recover, Training
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, TextSubject, load_subject
from headrace_workers.models.source import find_source

TEXT = "the mill wheel turns when water runs down a headrace and rests it does not"
WORDS = TEXT.split()
SHORT = Recover(training=Training(steps=50, batch_size=16, learning_rate=2e-3, weight_decay=0.1))


@pytest.fixture(scope="module")
def data() -> Split:
    found = [" ".join(WORDS[(at * step) % len(WORDS)] for at in range(1, 9)) for step in range(1, 13)]
    return split(Examples([f"{text} {word}" for text in found for word in WORDS]))


@pytest.fixture
def original(tiny_model: Callable[..., Path]) -> TextSubject:
    return load_subject(find_source(tiny_model("Bert")))


def likeness(subject: Subject, original: Subject, data: Split) -> float:
    """Mean cosine on test data."""
    (batch,) = original.batches(data.test, len(data.test))
    with torch.no_grad():
        return functional.cosine_similarity(subject.answers(batch).rows, original.answers(batch).rows).mean().item()


def test_what_neurons_did_is_learned_by_those_that_are_left(original: TextSubject, data: Split) -> None:
    context = StageContext(original, data)
    pruned = prune_structured(original.clone(), PruneStructured(target="ffn", ratio=0.5), context)
    before = likeness(pruned, original, data)
    recovered = recover(pruned, SHORT, context)
    assert likeness(recovered, original, data) > before + 0.3 * (1 - before)
    assert context.notes[-1].startswith("recover: ")


def test_zeros_stay_zero_and_the_rest_learns(original: TextSubject, data: Split) -> None:
    """Fifty steps with momentum and weight decay move no weight that was set to zero."""
    context = StageContext(original, data)
    pruned = prune(original.clone(), Prune(method="l1", amount=0.7), context)
    masks, before = masks_of(pruned), likeness(pruned, original, data)
    recovered = recover(pruned, SHORT, context)
    assert likeness(recovered, original, data) > before
    for name, mask in masks.items():
        weight = recovered.module.get_parameter(f"{name}.weight")
        assert int(weight[~mask].count_nonzero()) == 0
        assert int((weight[mask] != 0).sum()) > 0.99 * int(mask.sum())
    assert recovered.structure.pruned == sorted(masks)


def test_what_needs_no_recovery_is_left_as_it_is(original: TextSubject, data: Split) -> None:
    context = StageContext(original, data)
    twin = recover(original.clone(), Recover(training=Training(steps=5, learning_rate=0.5)), context)
    assert likeness(twin, original, data) == pytest.approx(1.0, abs=1e-5)
    assert "gained nothing" in context.notes[-1]


def test_losses_for_which_there_is_nothing(original: TextSubject, data: Split) -> None:
    stage = Recover(losses=Losses(task=1.0))
    with pytest.raises(StageError, match="labels"):
        recover(original.clone(), stage, StageContext(original, data))
