"""How good a compressed model is: against the labels where there are any, and against the model as it came always.

Both models answer the same batches. What is asked of their answers follows from the task: accuracy where data has
labels, perplexity for language models, the order of similarities for embeddings, the same best class elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.invariance import batch_distance, is_bitwise
from headrace_workers.compression.evaluation.prepared import prepared_copy, rows_by_example
from headrace_workers.compression.evaluation.statistics import (
    Interval,
    bootstrap,
    kl_of_rows,
    neighbours_kept,
    spearman,
)
from headrace_workers.compression.subject import Batch, Subject

__all__ = ["Quality", "quality"]

Metric = Literal["accuracy", "agreement", "similarity", "perplexity"]

_BATCH: Final = 32
_LANGUAGE_BATCH: Final = 2
"""A text of a language model has its tokens times its vocabulary in logits: 50 MB for 256 tokens."""
_LEAST: Final = 2
_PARTNERS: Final = 8
"""Other examples that each example's similarity to is looked at."""
_LARGEST_EXPONENT: Final = 700.0
_ROUNDING: Final = 1e-5
"""Relative distance by which a model in floating point may answer otherwise in another batch."""


class Quality(BaseModel):
    """How near a model's answers are to right, and to those of the model as it came."""

    model_config = ConfigDict(frozen=True)

    examples: int
    metric_name: Metric
    """`similarity`: Spearman's correlation of the examples' similarities with those of the model as it came.
    `agreement`: share of answers whose best class is that of the model as it came."""
    metric: float
    metric_low: float
    """Of a bootstrap interval of 95 %."""
    metric_high: float
    metric_original: float
    """The same figure of the model as it came."""
    metric_drop: float
    """What was lost of the metric, relative to the original's; below zero where it got better."""
    agreement: Annotated[float, Field(ge=0, le=1)]
    """Share of answers with the same best class; for embeddings, of examples with the same nearest neighbour."""
    kl: float | None = None
    """Mean KL(original ‖ this) of a row of logits, in nats."""
    cosine_mean: float | None = None
    """Of embeddings to the original's; None where widths differ."""
    cosine_p1: float | None = None
    cosine_p50: float | None = None
    cosine_min: float | None = None
    perplexity: float | None = None
    perplexity_original: float | None = None
    perplexity_ratio: float | None = None
    batch_invariant: bool
    """Whether batch mates change no bit of an answer of a compressed model, and only rounding (1e-5) of another's."""
    batch_distance: float
    """The largest relative distance between an example's answers alone and in company."""


def quality(subject: Subject, original: Subject, examples: Examples, seed: int) -> Quality:
    """Judge a subject.

    Args:
        subject: what became of the model; it may hold compressed layers, unprepared. It is not changed.
        original: the model as it came.
        examples: what both are asked.
        seed: of the bootstrap and of the random batches.

    Raises:
        CompressionDataError: fewer than two examples.
        StageError: the subject answers with NaN or infinity.
    """
    if len(examples) < _LEAST:
        raise CompressionDataError(f"{len(examples)} examples judge nothing; give {_LEAST} at least, better hundreds")
    figures = (
        _of_embeddings(subject, original, examples, seed)
        if subject.task == "embedding"
        else _of_logits(subject, original, examples, seed)
    )
    distance = batch_distance(subject, examples, seed=seed)
    invariant = distance == 0 if is_bitwise(subject) else distance <= _ROUNDING
    return Quality(examples=len(examples), batch_invariant=invariant, batch_distance=distance, **figures)


def _answers(subject: Subject, original: Subject, examples: Examples) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
    """Batch by batch: the batch, the rows of both, and the right classes (empty where unknown)."""
    module = prepared_copy(subject)
    size = _LANGUAGE_BATCH if subject.task == "causal_lm" else _BATCH
    with torch.inference_mode():
        for batch in subject.batches(examples, size):
            said = subject.answers(batch, module=module)
            if not said.rows.isfinite().all():
                raise StageError("the compressed model answers with NaN or infinity: its weights were ruined")
            targets = torch.empty(0, dtype=torch.int64) if said.targets is None else said.targets
            yield batch, said.rows, original.answers(batch).rows, targets


# -- embeddings ---------------------------------------------------------------------------------------------


def _of_embeddings(subject: Subject, original: Subject, examples: Examples, seed: int) -> dict[str, float | str | None]:
    found = [(said, meant) for _, said, meant, _ in _answers(subject, original, examples)]
    said, meant = (torch.nn.functional.normalize(torch.cat(rows), dim=1) for rows in zip(*found, strict=True))
    similar, expected = _similarities(said), _similarities(meant)

    def figure(places: Tensor) -> float:
        return spearman(similar[places].flatten(), expected[places].flatten())

    metric = figure(torch.arange(len(said)))
    return {
        **_metric("similarity", metric, 1.0, bootstrap(figure, len(said), seed=seed)),
        "agreement": float(neighbours_kept(meant, said).float().mean()),
        **(_cosines((said * meant).sum(1)) if said.shape == meant.shape else {}),
    }


def _similarities(vectors: Tensor) -> Tensor:
    """Cosines of each vector to the next few: [examples, partners]."""
    partners = range(1, min(_PARTNERS, len(vectors) - 1) + 1)
    return torch.stack([(vectors * vectors.roll(-step, 0)).sum(1) for step in partners], dim=1)


def _cosines(cosines: Tensor) -> dict[str, float]:
    exact = cosines.double().clamp_max(1.0)
    p1, p50 = exact.quantile(torch.tensor([0.01, 0.5], dtype=torch.float64)).tolist()
    return {
        "cosine_mean": float(exact.mean()),
        "cosine_p1": p1,
        "cosine_p50": p50,
        "cosine_min": float(exact.min()),
    }


# -- logits -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """What is counted of each example, float64 [examples]."""

    rows: Tensor
    kl: Tensor
    agreed: Tensor
    known: Tensor
    """Rows of which the right class is known."""
    right: Tensor
    right_original: Tensor
    surprise: Tensor
    """Negative log-likelihood of the right classes, in nats."""
    surprise_original: Tensor

    def mean(self, name: str, places: Tensor, over: str = "rows") -> float:
        """The sum of a count over that of another, for some examples."""
        whole = float(getattr(self, over)[places].sum())
        return float(getattr(self, name)[places].sum()) / whole if whole else 0.0


def _of_logits(subject: Subject, original: Subject, examples: Examples, seed: int) -> dict[str, float | str | None]:
    parts = [_sums(subject, *answered) for answered in _answers(subject, original, examples)]
    sums = _Sums(**{part.name: torch.cat([getattr(one, part.name) for one in parts]) for part in fields(_Sums)})
    everything = torch.arange(len(sums.rows))
    figures: dict[str, float | str | None] = {
        "kl": sums.mean("kl", everything),
        "agreement": sums.mean("agreed", everything),
    }
    if subject.task == "causal_lm":
        return figures | _of_language(sums, everything, seed)
    name: Metric = "accuracy" if float(sums.known.sum()) else "agreement"
    counted = "right" if name == "accuracy" else "agreed"
    before = sums.mean("right_original", everything) if name == "accuracy" else 1.0
    interval = bootstrap(lambda places: sums.mean(counted, places), len(everything), seed=seed)
    return figures | _metric(name, sums.mean(counted, everything), before, interval)


def _of_language(sums: _Sums, everything: Tensor, seed: int) -> dict[str, float | str | None]:
    def perplexity(places: Tensor, of: str = "surprise") -> float:
        return math.exp(min(sums.mean(of, places, over="known"), _LARGEST_EXPONENT))

    value, before = perplexity(everything), perplexity(everything, "surprise_original")
    return {
        **_metric("perplexity", value, before, bootstrap(perplexity, len(everything), seed=seed)),
        "perplexity": value,
        "perplexity_original": before,
        "perplexity_ratio": value / before,
    }


def _sums(subject: Subject, batch: Batch, said: Tensor, meant: Tensor, targets: Tensor) -> _Sums:
    counts = rows_by_example(subject, batch)

    def by_example(values: Tensor) -> Tensor:
        return torch.stack([part.double().sum() for part in torch.split(values, counts)])

    best, best_original = said.argmax(-1), meant.argmax(-1)
    nothing = torch.zeros(len(said))
    known = len(targets) == len(said)
    return _Sums(
        rows=torch.tensor(counts, dtype=torch.float64),
        kl=by_example(kl_of_rows(meant, said)),
        agreed=by_example(best == best_original),
        known=by_example(nothing + 1 if known else nothing),
        right=by_example(best == targets if known else nothing),
        right_original=by_example(best_original == targets if known else nothing),
        surprise=by_example(_surprise(said, targets) if known else nothing),
        surprise_original=by_example(_surprise(meant, targets) if known else nothing),
    )


def _surprise(rows: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(rows, targets, reduction="none")


def _metric(name: Metric, value: float, original: float, interval: Interval) -> dict[str, float | str | None]:
    worse = value - original if name == "perplexity" else original - value
    return {
        "metric_name": name,
        "metric": value,
        "metric_low": interval.low,
        "metric_high": interval.high,
        "metric_original": original,
        "metric_drop": worse / original if original else 0.0,
    }
