"""Calibration: running examples through a model and seeing what comes into its linear layers. Padding is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.subject import Subject
from headrace_workers.compression.watching import valid_rows, watched

__all__ = ["Sees", "calibrate", "calibration_examples"]

_BATCH: Final = 8
_LEAST_EXAMPLES: Final = 8

Progress = Callable[[str, float], None]


class Sees(Protocol):
    """What can be shown rows of inputs."""

    def observe(self, values: Tensor, /) -> None:
        """See float32 [rows, inputs]; ValueError if one of them is not finite."""
        ...


def calibration_examples(examples: Examples, samples: int, seed: int) -> Examples:
    """The examples to calibrate with.

    Raises:
        CompressionDataError: there are too few.
    """
    if len(examples) < _LEAST_EXAMPLES:
        raise CompressionDataError(f"{len(examples)} examples to calibrate with; it takes {_LEAST_EXAMPLES} or more")
    if samples < _LEAST_EXAMPLES:
        raise CompressionDataError(f"calibration with {samples} samples; it takes {_LEAST_EXAMPLES} or more")
    return examples.sample(samples, seed=seed)


@torch.no_grad()
def calibrate(subject: Subject, observers: Mapping[str, Sees], examples: Examples, progress: Progress) -> None:
    """Show what comes into modules, by their names, to an observer for each.

    Raises:
        StageError: what comes into a module is not finite, or nothing ever does.
    """
    module, reached = subject.module.eval(), set()
    done = 0
    for batch in subject.batches(examples, _BATCH):

        def see(name: str, x: Tensor, valid: Tensor = batch.valid) -> None:
            reached.add(name)
            try:
                observers[name].observe(valid_rows(x, valid))
            except ValueError as error:
                raise StageError(f"what comes into {name} cannot be calibrated with: {error}") from None

        with watched(module, list(observers), see):
            subject.answers(batch)
        done += len(batch)
        progress("calibrating", done / len(examples))
    if missed := sorted(set(observers) - reached):
        raise StageError(f"nothing comes into {missed[0]} when the model runs: leave it alone")
