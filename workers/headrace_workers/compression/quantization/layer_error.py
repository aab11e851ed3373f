"""How far a quantized layer is from what it was: its signal-to-noise ratio, in dB. Ten more is a third of the error.

Where there are examples, it is of the layer's outputs on their inputs, with everything in it: weights, activations and
their ranges. Without examples it is of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.calibration import Progress, calibrate
from headrace_workers.compression.quantization.layers import Twins
from headrace_workers.compression.subject import Subject
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["output_sqnr_db", "weight_sqnr_db"]

_MOST_ROWS: Final = 256
"""Rows of a batch that are compared."""


def weight_sqnr_db(plain: Tensor, weight: Int8Weight | AffineWeight) -> float:
    """The ratio of a matrix, [outputs, inputs], to what quantization did to it."""
    plain = plain.detach().float()
    return _decibels(float(plain.square().sum()), float((weight.dequantized() - plain).square().sum()))


def output_sqnr_db(
    subject: Subject, weights: Mapping[str, Int8Weight | AffineWeight], examples: Examples, progress: Progress
) -> dict[str, float]:
    """The ratio of layers' outputs to what quantization does to them, each for itself, the others as they were.

    Args:
        subject: still in full precision.
        weights: what will take the place of its linear layers, by their names.
        examples: to run through it.
        progress: told how far it is.
    """
    twins, module = Twins(), subject.module
    observers = {name: _Comparison(module.get_submodule(name), twins.of(weight)) for name, weight in weights.items()}
    calibrate(subject, observers, examples, progress)
    return {name: _decibels(seen.signal, seen.noise) for name, seen in observers.items()}


class _Comparison:
    """Sums up what a layer says, and how far its quantized twin is from it."""

    def __init__(self, plain: Any, twin: Callable[[Tensor], Tensor]) -> None:
        self._plain: nn.Linear = plain
        self._twin = twin
        self.signal = self.noise = 0.0

    def observe(self, rows: Tensor, /) -> None:
        """See inputs, float32 [rows, inputs]."""
        rows = rows[:_MOST_ROWS]
        said = torch.nn.functional.linear(rows, self._plain.weight, self._plain.bias)
        self.signal += float(said.square().sum())
        self.noise += float((self._twin(rows) - said).square().sum())


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
