"""A subject made ready to answer: a copy of it, since layers on kernels can be neither trained nor stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from torch import nn

from headrace_workers.compression.subject import Batch, Subject, TextSubject
from headrace_workers.kernels.layers import AffineLinear, QuantizedLinear
from headrace_workers.kernels.selection import KernelTable, Policy
from headrace_workers.models.loading import LoadedModel
from headrace_workers.models.preparing import Precision, prepare_model
from headrace_workers.models.runner import Ids, Runner

__all__ = ["packed_runner", "prepared_copy", "rows_by_example", "token_ids"]

_PROBES: Final = (
    "Short.",
    "A headrace is the channel that leads water to the mill wheel.",
    "One text more, neither long nor short; the others differ in length, so that packing can go wrong between them.",
)


def prepared_copy(subject: Subject, table: KernelTable | None = None) -> nn.Module:
    """A copy of the subject's module whose compressed layers have kernels.

    Args:
        subject: not changed.
        table: how kernels are chosen; None: without measuring, int8 for what is quantized on both sides, and fp32 for
            weights whose inputs are not.
    """
    module = subject.clone().module.eval()
    int8, exact = (KernelTable("int8"), KernelTable("fp32")) if table is None else (table, table)
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.prepare(exact if isinstance(layer, AffineLinear) else int8)
    return module


def packed_runner(subject: TextSubject) -> Runner:
    """What an engine runs an encoder with: packed if it can be, on int8 kernels if it is compressed."""
    module = subject.clone().module.eval()
    model = LoadedModel(module, module.config, subject.task)
    precision: Precision = "int8" if model.compressed else "fp32"
    # The policy int8 would quantize the inputs of layers that take them as they are.
    policy: Policy = "measured" if any(isinstance(layer, AffineLinear) for layer in module.modules()) else "int8"
    runner, _ = prepare_model(model, token_ids(subject, _PROBES), precision=precision, kernels=policy)
    return runner


def token_ids(subject: TextSubject, texts: Sequence[str]) -> list[Ids]:
    """The tokens of texts as runners take them."""
    return [subject.batch([text]).inputs["input_ids"][0].numpy().astype(np.int64) for text in texts]


def rows_by_example(subject: Subject, batch: Batch) -> list[int]:
    """How many rows of a subject's answers belong to each example of a batch."""
    match subject.task:
        case "causal_lm":
            counts = batch.valid[:, 1:].sum(1)
        case "token_classification":
            counts = batch.valid.sum(1)
        case _:
            return [1] * len(batch)
    return [int(count) for count in counts]
