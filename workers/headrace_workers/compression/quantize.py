"""Quantizing a model's weights to int8: linear layers by output channel, embedding tables by row. No data needed.

Each row of a matrix gets its own scale, its largest magnitude / 127, and is rounded to nearest. What decides the
quality of an answer most is left alone by default: classification heads and poolers, which are small anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from headrace_workers.kernels.layers import CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.weights import Int8Weight

__all__ = ["LEFT_ALONE", "QuantizationReport", "Scheme", "quantize_model", "round_to_nearest"]

LEFT_ALONE: Final = ("*classifier*", "*pooler*", "*pre_classifier*", "*score", "*lm_head*", "*qa_outputs*")
"""Patterns of module names that are not quantized by default."""

_SMALL_TABLE_ROWS: Final = 1024
"""Embedding tables of fewer rows (positions, token types) are left alone: nothing is won there."""

Scheme = Literal["int8_channel", "int8_row"]
"""How a tensor is stored: a linear weight with a scale per output channel, an embedding with a scale per row."""


@dataclass
class QuantizationReport:
    """What was quantized, and what it saved."""

    schemes: dict[str, Scheme] = field(default_factory=dict)
    """Module name to scheme."""
    skipped: list[str] = field(default_factory=list)
    """Names of the linear layers and tables that were left alone."""
    bytes_before: int = 0
    bytes_after: int = 0

    def describe(self) -> dict[str, Any]:
        """For manifests and `EngineInfo.details`."""
        return {
            "layers": len(self.schemes),
            "skipped": self.skipped,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def round_to_nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix row by row, symmetrically.

    Args:
        weight: floating point [rows, columns].

    Returns:
        int8 [rows, columns] in -127..127, and the scales, float32 [rows]. `values * scale[:, None]` is within half
        a scale of the weight.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / 127.0
    scale = torch.where(scale > 0, scale, 1.0)
    values = (weight / scale[:, None]).round().clamp_(-127, 127).to(torch.int8)
    return values, scale


def quantize_model(model: nn.Module, *, left_alone: Sequence[str] = LEFT_ALONE) -> QuantizationReport:
    """Replace the model's linear layers and large embedding tables, in place, one after the other.

    Args:
        model: any torch module; its weights are let go of as they are replaced.
        left_alone: patterns (`fnmatch`) of the names of modules that are not touched.
    """
    report = QuantizationReport(bytes_before=_bytes_of(model))
    for name, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding):
            continue
        if any(fnmatchcase(name, pattern) for pattern in left_alone) or not _worth_it(module):
            report.skipped.append(name)
            continue
        replacement, scheme = _replacement(module)
        model.set_submodule(name, replacement)
        report.schemes[name] = scheme
    report.bytes_after = _bytes_of(model)
    return report


def _worth_it(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding) or module.num_embeddings >= _SMALL_TABLE_ROWS


def _replacement(module: nn.Module) -> tuple[nn.Module, Scheme]:
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(*round_to_nearest(module.weight)), "int8_row"
    assert isinstance(module, nn.Linear)
    values, scale = round_to_nearest(module.weight)
    bias = None if module.bias is None else module.bias.detach().float()
    return CompressedLinear(Int8Weight(values, scale, bias)), "int8_channel"


def _bytes_of(model: nn.Module) -> int:
    """Bytes of parameters, buffers and compressed weights; tied tensors count once."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, CompressedLinear) and module.source is not None:
            weight = module.source
            tensors += [weight.values, weight.scale] + ([] if weight.bias is None else [weight.bias])
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
