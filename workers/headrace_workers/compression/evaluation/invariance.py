"""Whether an answer depends on its batch mates: each example alone, and in random batches.

Encoders are asked through the packed runner that engines serve them with; what has no such runner, in padded batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.prepared import packed_runner, prepared_copy, rows_by_example, token_ids
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.kernels.layers import CompressedLinear

__all__ = ["batch_distance", "is_bitwise"]

_EXAMPLES: Final = 16
_BATCHES: Final = 5
_TOGETHER: Final = 8

Ask = Callable[[Sequence[int]], list[Tensor]]
"""Takes the places of examples that go through the model together, and gives the rows of each."""


def is_bitwise(subject: Subject) -> bool:
    """Whether not a bit of its answers may depend on a batch: it quantizes activations, and a digit could tip over."""
    return any(isinstance(layer, CompressedLinear) for layer in subject.module.modules())


def batch_distance(subject: Subject, examples: Examples, *, seed: int) -> float:
    """The largest relative distance between an example's answer alone and in any of five random batches.

    Args:
        subject: not changed.
        examples: at least two; a few of them are asked.
        seed: which ones, and with whom.
    """
    chosen = examples.sample(_EXAMPLES, seed=seed)
    encoder = isinstance(subject, TextSubject) and subject.task != "causal_lm"
    ask = _packed(subject, chosen) if encoder else _padded(subject, chosen)
    alone = [ask([place])[0] for place in range(len(chosen))]
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(_BATCHES):
        batch = torch.randperm(len(chosen), generator=generator)[:_TOGETHER].tolist()
        worst = max([worst, *(_apart(rows, alone[place]) for place, rows in zip(batch, ask(batch), strict=True))])
    return worst


def _apart(rows: Tensor, expected: Tensor) -> float:
    return float((rows - expected).norm() / expected.norm().clamp_min(1e-12))


def _packed(subject: Subject, examples: Examples) -> Ask:
    assert isinstance(subject, TextSubject)
    runner, ids = packed_runner(subject), token_ids(subject, list(examples))

    def ask(places: Sequence[int]) -> list[Tensor]:
        rows, counts = runner([ids[place] for place in places])
        return list(torch.split(rows, counts))

    return ask


def _padded(subject: Subject, examples: Examples) -> Ask:
    module = prepared_copy(subject)

    @torch.inference_mode()
    def ask(places: Sequence[int]) -> list[Tensor]:
        batch = next(subject.batches(examples.take(places), len(places)))
        rows = subject.answers(batch, module=module).rows
        return list(torch.split(rows, rows_by_example(subject, batch)))

    return ask
