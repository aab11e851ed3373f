"""What setting half of a model's weights to zero does: to its file, to its answers, and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headrace_cluster.corpus import reference_texts
from headrace_workers.artifacts.artifact import open_artifact
from headrace_workers.compression.data import Examples, split
from headrace_workers.compression.evaluation.judging import Measures
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import Prune, Recipe
from headrace_workers.compression.subject import load_subject
from headrace_workers.models.source import find_source

__all__ = ["measure_sparse"]


def measure_sparse(model: Path, folder: Path, say: Callable[[str], None], *, quick: bool) -> dict[str, Any]:
    """Prune half of an encoder's weights by magnitude, store it, and read it back.

    Args:
        model: a Hugging Face folder.
        folder: where the artifact may be written.
        say: is told what is being done.
        quick: a short look.
    """
    say("pruning half of the weights")
    source = find_source(str(model))
    subject = load_subject(source)
    report = compress_subject(
        subject,
        split(Examples(reference_texts(120 if quick else 800, seed=11))),
        Recipe(stages=[Prune(method="l1", amount=0.5, embeddings=True)]),
        folder / "sparse50",
        model=source.folder,
        measures=Measures(examples=32 if quick else 128, rounds=2 if quick else 5),
    )
    artifact = open_artifact(folder / "sparse50")
    tensors = artifact.tensors(artifact.variant())
    return {
        "sparse50_size_ratio": report.metrics["size_ratio"],
        "sparse50_bitwise": _left_as_they_were(tensors, dict(subject.module.state_dict())),
        "sparse50_speedup": report.metrics["speedup"],
        "sparse50_cosine_mean": report.metrics["cosine_mean"],
        "sparse50_says": " ".join(report.stages[-1].notes),
    }


def _left_as_they_were(pruned: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    """Whether every weight that was not set to zero has all its bits."""
    return all(torch.equal(value, before[name].where(value != 0, 0)) for name, value in pruned.items())
