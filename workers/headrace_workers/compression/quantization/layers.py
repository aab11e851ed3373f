"""From quantized weights to layers, and ways to run such a layer at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from headrace_workers.kernels.layers import AffineLinear, CompressedLinear, QuantizedLinear
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["Twins", "linear_layer", "weight_of"]


def linear_layer(weight: Int8Weight | AffineWeight) -> QuantizedLinear:
    """The layer for a weight, not yet prepared."""
    return CompressedLinear(weight) if isinstance(weight, Int8Weight) else AffineLinear(weight)


def weight_of(layer: nn.Module) -> Int8Weight | AffineWeight:
    """The weight of a quantized linear layer that was not released."""
    assert isinstance(layer, CompressedLinear | AffineLinear), "not a quantized linear layer"
    assert layer.source is not None, "a released layer has its weight in a kernel's order"
    return layer.source


class Twins:
    """Makes layers that run as their weights say, on int8 kernels where they are int8, without measuring anything.

    Kernels test themselves once for each of these, so one should serve all layers of a model.
    """

    def __init__(self) -> None:
        self._tables = {Int8Weight: KernelTable("int8"), AffineWeight: KernelTable("fp32", kernels=())}

    def of(self, weight: Int8Weight | AffineWeight) -> Callable[[Tensor], Tensor]:
        """A layer for a weight, which itself stays as it is, unpacked."""
        layer = linear_layer(weight.with_activation(weight.activation))
        layer.prepare(self._tables[type(weight)])
        return layer
