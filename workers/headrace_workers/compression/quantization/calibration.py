"""Calibration: running examples through a model and seeing what comes into its linear layers. Padding is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.subject import Subject

__all__ = ["Sees", "calibrate", "calibration_examples", "valid_rows", "watched"]

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


def valid_rows(x: Tensor, valid: Tensor) -> Tensor:
    """What came into a layer without padding: float32 [..., width] to [rows, width].

    Args:
        x: by example and position, or by example alone.
        valid: bool [examples, positions].
    """
    x = x.detach().float()
    if x.dim() == 3 and x.shape[:2] == valid.shape:
        return x[valid]
    rows = x.reshape(-1, x.shape[-1])
    return rows[valid.reshape(-1)] if rows.shape[0] == valid.numel() else rows


@contextmanager
def watched(module: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """See what comes into modules while the context lasts."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, arguments: see(name, arguments[0])

    handles = [module.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
