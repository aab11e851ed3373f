"""Sensitivity: how much the answers change when one layer alone is quantized, and everything else stays as it is.

Which layers to leave in full precision, or give more bits, is decided by this ranking; what a layer's own error is like
says little about what the layers behind it make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.errors import StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.convert import nearest
from headrace_workers.compression.quantization.layers import Twins
from headrace_workers.compression.quantization.plan import LEFT_ALONE, plan_of
from headrace_workers.compression.recipe import Quantize, WeightScheme
from headrace_workers.compression.subject import Batch, Subject

__all__ = ["Sensitivity", "rank_layers", "sensitivities"]

_BATCH: Final = 8
_EXAMPLES: Final = 64

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Sensitivity:
    """What one layer's quantization does to the answers."""

    module: str
    scheme: str
    """The name that the caller gave it."""
    divergence: float
    """Mean over answers: 1 − cosine for embeddings, KL(plain ‖ quantized) in nats for logits."""
    weights: int
    """How many the layer has: what there is to save."""


def sensitivities(
    subject: Subject,
    examples: Examples,
    schemes: Mapping[str, WeightScheme] | None = None,
    *,
    left_alone: Sequence[str] = LEFT_ALONE,
    progress: Progress = lambda _what, _share: None,
) -> list[Sensitivity]:
    """Rank linear layers by what quantizing each of them alone would do.

    Args:
        subject: in full precision; as it was in the end.
        examples: to compare answers on; the first 64 are taken.
        schemes: candidates, by any name; None: int8. Static activations are not among them: they need calibration.
        left_alone: patterns of the names of modules that are not tried.
        progress: told how far it is.

    Returns:
        One for each layer and scheme, the most sensitive first.

    Raises:
        StageError: a scheme has static activations or is of 16 bits, or the model has no linear layer to quantize.
    """
    schemes = {"int8": WeightScheme()} if schemes is None else schemes
    for name, scheme in schemes.items():
        if scheme.dtype != "int" or scheme.activations.kind == "static":
            raise StageError(f"sensitivity to {name!r}: only whole numbers without static activations are tried")
    layers = list(plan_of(subject.module, Quantize(left_alone=list(left_alone))).linears)
    if not layers:
        raise StageError("every linear layer of the model is left alone")
    return _ranked(subject, examples.take(range(min(_EXAMPLES, len(examples)))), layers, schemes, progress)


def rank_layers(subject: Subject, examples: Examples, progress: Progress = lambda _what, _share: None) -> list[str]:
    """The names of a model's linear layers, those first that int8 harms most."""
    return [found.module for found in sensitivities(subject, examples, progress=progress)]


@torch.inference_mode()
def _ranked(
    subject: Subject, examples: Examples, layers: Sequence[str], schemes: Mapping[str, WeightScheme], progress: Progress
) -> list[Sensitivity]:
    subject.module.eval()
    batches = list(subject.batches(examples, _BATCH))
    # A language model says fifty thousand numbers at each token: its answers are computed again rather than kept.
    plain = [] if subject.task == "causal_lm" else [subject.answers(batch).rows for batch in batches]
    twins, found = Twins(), []
    for place, layer in enumerate(layers):
        linear = subject.module.get_submodule(layer)
        assert isinstance(linear, nn.Linear), f"{layer} is not a linear layer"
        for name, scheme in schemes.items():
            changed = twins.of(nearest(linear, scheme))
            divergence = _divergence(subject, layer, changed, batches, plain)
            found.append(Sensitivity(layer, name, divergence, linear.weight.numel()))
        progress("measuring sensitivity", (place + 1) / len(layers))
    return sorted(found, key=lambda one: one.divergence, reverse=True)


def _divergence(
    subject: Subject,
    layer: str,
    changed: Callable[[Tensor], Tensor],
    batches: Sequence[Batch],
    kept: Sequence[Tensor],
) -> float:
    total, rows = 0.0, 0
    for place, batch in enumerate(batches):
        plain = kept[place] if kept else subject.answers(batch).rows
        with _replaced(subject.module.get_submodule(layer), changed):
            quantized = subject.answers(batch).rows
        total += float(_distances(subject, plain, quantized).sum())
        rows += len(plain)
    return total / max(1, rows)


@contextmanager
def _replaced(linear: nn.Module, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let something else answer for a layer."""
    handle = linear.register_forward_hook(lambda _module, arguments, _output: changed(arguments[0]))
    try:
        yield
    finally:
        handle.remove()


def _distances(subject: Subject, plain: Tensor, quantized: Tensor) -> Tensor:
    if subject.task == "embedding":
        return 1 - functional.cosine_similarity(plain.double(), quantized.double(), dim=-1)
    logs, others = plain.log_softmax(-1), quantized.log_softmax(-1)
    return functional.kl_div(others, logs, reduction="none", log_target=True).sum(-1)
