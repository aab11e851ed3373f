"""The contents of a variant: all tensors of a model by the names that files give them, and the scheme of each module.

Whatever can be stored in less without losing a bit is: codes in their bits, tied weights once, matrices whose values
16 bits can hold in 16 bits. (Tensors that are mostly zeros lose them when they are written.)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from headrace_workers.artifacts.artifact import Structure, VariantContent
from headrace_workers.compression.quantization.layers import weight_of
from headrace_workers.compression.subject import Subject
from headrace_workers.kernels.layers import QuantizedEmbedding, QuantizedLinear
from headrace_workers.kernels.schemes import INT8_ROW, scheme_of
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["contents_of", "module_contents"]

_HALVES: Final = (torch.float16, torch.bfloat16)


def contents_of(subject: Subject) -> VariantContent:
    """Everything of a subject that a variant holds. Its tensors are the subject's own wherever they can be."""
    return module_contents(subject.module, subject.structure)


def module_contents(module: nn.Module, structure: Structure | None = None) -> VariantContent:
    """The same of a module of a structure."""
    tensors = _plain_tensors(module)
    layers: dict[str, str] = {}
    bits: dict[str, int] = {}
    tables = {name: part for name, part in module.named_modules() if isinstance(part, QuantizedEmbedding)}
    for name, table in tables.items():
        layers[name] = INT8_ROW
        tensors |= {f"{name}.weight": table.values, f"{name}.weight_scale": table.scale}
    for name, part in module.named_modules():
        if isinstance(part, QuantizedLinear):
            weight = weight_of(part)
            shared = _table_of(weight, tables)
            layers[name] = str(scheme_of(weight, table=shared))
            tensors |= _tensors(name, weight, shared=bool(shared))
            if isinstance(weight, AffineWeight) and not shared:
                bits[f"{name}.weight"] = weight.bits
    return VariantContent(tensors, layers, Structure() if structure is None else structure, bits=bits)


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of what is not quantized; of those that are one and the same the first."""
    tables = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, QuantizedEmbedding))
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        same = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if name.startswith(tables) or (tensor.numel() and same in seen):
            continue
        seen.add(same)
        found[name] = _in_least(tensor)
    return found


def _in_least(tensor: Tensor) -> Tensor:
    """A matrix in 16 bits, if these hold every one of its values exactly."""
    if tensor.dtype != torch.float32 or tensor.dim() < 2:
        return tensor
    for dtype in _HALVES:
        if torch.equal((smaller := tensor.to(dtype)).float(), tensor):
            return smaller
    return tensor


def _table_of(weight: Int8Weight | AffineWeight, tables: dict[str, QuantizedEmbedding]) -> str:
    """The table whose rows a weight's are; empty if there is none."""
    values = weight.values if isinstance(weight, Int8Weight) else weight.codes
    for name, table in tables.items():
        if values.shape != table.values.shape or not torch.equal(weight.scale.flatten(), table.scale):
            continue
        if torch.equal(values if values.dtype == torch.int8 else (values.short() - 128).to(torch.int8), table.values):
            return name
    return ""


def _tensors(name: str, weight: Int8Weight | AffineWeight, *, shared: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor | None] = {f"{name}.bias": weight.bias}
    if isinstance(weight, Int8Weight):
        if weight.input_range is not None:
            found[f"{name}.input_scale"], found[f"{name}.input_zero_point"] = weight.input_range
        own: dict[str, Tensor | None] = {f"{name}.weight": weight.values}
    else:
        own = {f"{name}.weight": weight.codes, f"{name}.weight_zero": weight.zero}
    if not shared:
        found |= own | {f"{name}.weight_scale": _in_least(weight.scale)}
    return {key: tensor for key, tensor in found.items() if tensor is not None}
