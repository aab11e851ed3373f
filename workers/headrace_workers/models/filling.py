"""Filling a module with a variant's tensors: quantized layers in place of plain ones, tied weights one tensor.

Kernels read these tensors by address, so nothing is taken on trust: each must be of the type and the shape that the
module it is for leaves no choice in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace_workers.artifacts.artifact import Variant
from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.schemes import INT8_ROW, LayerScheme, parse_scheme
from headrace_workers.kernels.weights import AffineWeight, InputRange, Int8Weight, tied_weight

__all__ = ["Left", "fill"]

_HALVES: Final = (torch.float16, torch.bfloat16)
_LEVELS: Final = 255


@dataclass(frozen=True)
class Left:
    """What did not fit."""

    missing: set[str]
    """State names of the module that got no tensor."""
    unexpected: list[str]
    """Names of tensors that the module has no place for."""


def fill(module: nn.Module, variant: Variant, tensors: dict[str, Tensor]) -> Left:
    """Give a module the tensors of a variant.

    Args:
        module: of the variant's structure, in any state; changed in place. Quantized layers are not prepared.
        variant: which modules are quantized, and how.
        tensors: decoded; consumed. What was stored in 16 bits becomes float32.

    Raises:
        AttributeError: the variant quantizes a module that is not there.
        KeyError: a tensor of a quantized module is not there.
        ValueError: a scheme is not known, or a tensor is not of the type or shape that its module needs.
    """
    ties = _ties(module)
    schemes = {path: parse_scheme(text) for path, text in variant.layers.items()}
    for path, scheme in sorted(schemes.items(), key=lambda item: item[1].table):  # tables before those tied to them
        module.set_submodule(path, _layer(module, path, scheme, tensors))
    plain = {name: tensor.float() if tensor.dtype in _HALVES else tensor for name, tensor in tensors.items()}
    left = module.load_state_dict(plain, strict=False, assign=True)
    tied = _tie(module, ties, set(plain))
    return Left(set(left.missing_keys) - _held_by_tables(module) - tied, list(left.unexpected_keys))


def _layer(module: nn.Module, path: str, scheme: LayerScheme, tensors: dict[str, Tensor]) -> nn.Module:
    plain: Any = module.get_submodule(path)
    outputs, inputs = plain.weight.shape
    if scheme.kind == INT8_ROW:
        values = _taken(tensors, f"{path}.weight", torch.int8, outputs, inputs)
        return QuantizedEmbedding(values, _taken(tensors, f"{path}.weight_scale", torch.float32, outputs))
    bias = _taken(tensors, f"{path}.bias", torch.float32, outputs) if plain.bias is not None else None
    if scheme.table:
        return _tied_layer(module.get_submodule(scheme.table), scheme, bias)
    if scheme.kind == "affine":
        return AffineLinear(_affine(path, scheme, tensors, outputs, inputs, bias))
    values = _taken(tensors, f"{path}.weight", torch.int8, outputs, inputs)
    scale = _taken(tensors, f"{path}.weight_scale", torch.float32, outputs)
    return CompressedLinear(Int8Weight(values, scale, bias, input_range=_range(path, scheme, tensors)))


def _affine(
    path: str, scheme: LayerScheme, tensors: dict[str, Tensor], outputs: int, inputs: int, bias: Tensor | None
) -> AffineWeight:
    groups = 1 if scheme.group is None else -(-inputs // scheme.group)
    codes = _taken(tensors, f"{path}.weight", torch.uint8, outputs, inputs)
    if int(codes.max()) >> scheme.bits:
        raise ValueError(f"{path}.weight has codes of more than {scheme.bits} bits")
    tensors[f"{path}.weight_scale"] = tensors[f"{path}.weight_scale"].float()
    scale = _taken(tensors, f"{path}.weight_scale", torch.float32, outputs, groups)
    zero = _taken(tensors, f"{path}.weight_zero", torch.uint8, outputs, groups) if scheme.zero else None
    return AffineWeight(codes, scale, zero, bias, bits=scheme.bits, group=scheme.group)


def _tied_layer(table: nn.Module, scheme: LayerScheme, bias: Tensor | None) -> nn.Module:
    if not isinstance(table, QuantizedEmbedding):
        raise ValueError(f"{scheme.table} is not a table in int8, so that no layer can share its rows")
    weight = tied_weight(table.values, table.scale, bias, exact_inputs=scheme.kind == "affine")
    return AffineLinear(weight) if isinstance(weight, AffineWeight) else CompressedLinear(weight)


def _range(path: str, scheme: LayerScheme, tensors: dict[str, Tensor]) -> InputRange | None:
    if not scheme.static:
        return None
    scale = _taken(tensors, f"{path}.input_scale", torch.float32, 1)
    zero_point = _taken(tensors, f"{path}.input_zero_point", torch.int32, 1)
    if not (float(scale) > 0 and 0 <= int(zero_point) <= _LEVELS):
        raise ValueError(f"{path} has inputs of scale {float(scale)} with zero at {int(zero_point)}")
    return InputRange(scale, zero_point)


def _taken(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    tensor = tensors.pop(name)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)} and must be {dtype} {list(shape)}")
    return tensor


def _ties(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same, group by group."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(module: nn.Module, ties: Sequence[Sequence[str]], given: set[str]) -> set[str]:
    """Let parameters that were one be one again, where a tensor came for one of them only; those that got theirs so."""
    tied = set()
    for group in ties:
        held = [name for name in group if name in given]
        for name in set(group) - set(held) if held else ():
            path, _, attribute = name.rpartition(".")
            part = module.get_submodule(path)
            if isinstance(part, nn.Linear | nn.Embedding):
                setattr(part, attribute, module.get_parameter(held[0]))
                tied.add(name)
    return tied


def _held_by_tables(module: nn.Module) -> set[str]:
    """State names of quantized tables, which were given their tensors when they were made."""
    tables = (name for name, part in module.named_modules() if isinstance(part, QuantizedEmbedding))
    return {f"{name}.{tensor}" for name in tables for tensor in ("values", "scale")}
