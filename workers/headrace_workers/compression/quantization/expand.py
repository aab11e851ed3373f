"""Undoing quantization, for hardware that gains nothing from it: plain layers with the values that int8 stands for."""

from __future__ import annotations

from torch import nn

from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedEmbedding
from headrace_workers.kernels.weights import Activation, AffineWeight, Int8Weight

__all__ = ["expand_model", "expanded_linear"]


def expand_model(module: nn.Module) -> None:
    """Replace every compressed layer of a model, none of them released, by a plain one in float32, in place.

    Inputs are rounded no more: calibrated ranges are let go of.
    """
    for name, layer in list(module.named_modules()):
        if isinstance(layer, (CompressedLinear, AffineLinear)):
            assert layer.source is not None, "a released layer has its weight in a kernel's order"
            module.set_submodule(name, expanded_linear(layer.source))
        elif isinstance(layer, QuantizedEmbedding):
            module.set_submodule(name, _embedding(layer))


def _embedding(table: QuantizedEmbedding) -> nn.Embedding:
    plain = nn.Embedding(table.num_embeddings, table.embedding_dim, device="meta")
    plain.weight = nn.Parameter(table.values.float() * table.scale[:, None], requires_grad=False)
    return plain


def expanded_linear(weight: Int8Weight | AffineWeight) -> nn.Linear:
    """A plain layer with the values that a weight stands for."""
    assert weight.activation is Activation.IDENTITY, "only a fused layer has an activation of its own"
    layer = nn.Linear(weight.shape.inputs, weight.shape.outputs, bias=weight.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.dequantized(), requires_grad=False)
    if weight.bias is not None:
        layer.bias = nn.Parameter(weight.bias, requires_grad=False)
    return layer
