"""Converting linear layers: from weights in full precision, and what calibration saw, to quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.affine import Grid, affine_weight, int8_weight
from headrace_workers.compression.quantization.calibration import calibrate
from headrace_workers.compression.quantization.gptq import Correlation, gptq
from headrace_workers.compression.quantization.observers import Range, make_observer
from headrace_workers.compression.quantization.plan import is_int8
from headrace_workers.compression.recipe import ActivationScheme, WeightScheme
from headrace_workers.compression.subject import Subject
from headrace_workers.kernels.weights import AffineWeight, InputRange, Int8Weight

__all__ = ["Weight", "compensated", "nearest", "static_ranges"]

Weight = Int8Weight | AffineWeight
Progress = Callable[[str, float], None]

_SEARCHED_BITS: Final = 4
"""Up to so many bits, giving up a row's extremes can win more than it loses."""
_CORRELATION_BYTES: Final = 512 << 20
"""How much memory correlations may take at a time; calibration runs again for the layers after that."""
_LEVELS: Final = 255


def nearest(linear: nn.Linear, scheme: WeightScheme, observed: Range | None = None) -> Weight:
    """A layer's weight, rounded to nearest.

    Args:
        linear: the layer.
        scheme: how; of whole numbers.
        observed: for static activations, the range of its inputs.
    """
    grid = _grid(linear.weight, scheme)
    return _weight(grid, grid.codes(linear.weight.detach().float()), linear, scheme, observed)


def compensated(
    subject: Subject,
    schemes: Mapping[str, WeightScheme],
    ranges: Mapping[str, Range],
    examples: Examples,
    progress: Progress,
) -> dict[str, Weight]:
    """Layers' weights by GPTQ, each made to fit the inputs that it gets from the layers already rounded.

    Args:
        subject: in full precision, and again so in the end.
        schemes: how, for linear layers by name, in the order in which they run.
        ranges: of the inputs of layers with static activations.
        examples: to calibrate with.
        progress: told how far it is.

    Raises:
        StageError: what comes into a layer is not finite.
    """
    plain = {name: _linear(subject, name).weight.detach().clone() for name in schemes}
    found: dict[str, Weight] = {}
    try:
        for names in _parts(subject, list(schemes)):
            correlations = {name: Correlation(_linear(subject, name).in_features) for name in names}
            calibrate(subject, correlations, examples, progress)
            for name in names:
                found[name] = _compensated_one(subject, name, schemes[name], correlations.pop(name), ranges.get(name))
                _linear(subject, name).weight.data.copy_(found[name].dequantized())
                progress("rounding", len(found) / len(schemes))
    finally:
        for name, weight in plain.items():
            _linear(subject, name).weight.data.copy_(weight)
    return found


def static_ranges(
    subject: Subject, schemes: Mapping[str, ActivationScheme], percentile: float, examples: Examples, progress: Progress
) -> dict[str, Range]:
    """The ranges of what comes into layers, by their names.

    Raises:
        StageError: what comes into a layer is not finite, or nothing does.
    """
    observers = {name: make_observer(scheme.observer, percentile=percentile) for name, scheme in schemes.items()}
    calibrate(subject, observers, examples, progress)
    return {name: observer.range() for name, observer in observers.items()}


def _compensated_one(
    subject: Subject, name: str, scheme: WeightScheme, correlation: Correlation, observed: Range | None
) -> Weight:
    linear = _linear(subject, name)
    grid = _grid(linear.weight, scheme)
    try:
        codes = gptq(linear.weight, correlation, grid, act_order=True, keep_zeros=name in subject.structure.pruned)
    except ValueError as error:
        raise StageError(f"{name} cannot be rounded by GPTQ: {error}") from None
    return _weight(grid, codes, linear, scheme, observed)


def _grid(weight: Tensor, scheme: WeightScheme) -> Grid:
    search = scheme.bits <= _SEARCHED_BITS
    return Grid.of(weight, bits=scheme.bits, group=scheme.group, symmetric=scheme.symmetric, search=search)


def _weight(grid: Grid, codes: Tensor, linear: nn.Linear, scheme: WeightScheme, observed: Range | None) -> Weight:
    if not is_int8(scheme):
        return affine_weight(grid, codes, linear.bias)
    weight = int8_weight(grid, codes, linear.bias)
    if observed is not None:
        weight.input_range = _input_range(observed)
    return weight


def _input_range(observed: Range) -> InputRange:
    scale = (observed.high - observed.low) / _LEVELS or 1.0
    zero_point = min(_LEVELS, max(0, round(-observed.low / scale)))
    return InputRange(torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32))


def _linear(subject: Subject, name: str) -> nn.Linear:
    found = subject.module.get_submodule(name)
    assert isinstance(found, nn.Linear), f"{name} is not a linear layer"
    return found


def _parts(subject: Subject, names: Sequence[str]) -> Iterator[list[str]]:
    """The names, cut where the correlations of their inputs would take too much memory."""
    part: list[str] = []
    taken = 0
    for name in names:
        size = 4 * _linear(subject, name).in_features ** 2
        if part and taken + size > _CORRELATION_BYTES:
            yield part
            part, taken = [], 0
        part.append(name)
        taken += size
    if part:
        yield part
