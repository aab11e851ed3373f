"""What a compressed linear layer is made of: int8 weights, a scale for each output, a bias, an activation."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from headrace_workers.kernels.library import Linear, native_library

__all__ = ["Activation", "Int8Weight", "PackedWeight", "Shape"]

_PAD: Final = 64


class Activation(StrEnum):
    """What may follow a linear layer inside its kernel. The order is `enum hr_activation`'s."""

    IDENTITY = "identity"
    RELU = "relu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"

    @property
    def number(self) -> int:
        """The kernels' number for it."""
        return list(Activation).index(self)

    def __call__(self, x: Tensor) -> Tensor:
        """Torch's own implementation."""
        match self:
            case Activation.IDENTITY:
                return x
            case Activation.RELU:
                return torch.relu(x)
            case Activation.GELU:
                return torch.nn.functional.gelu(x)
            case Activation.GELU_TANH:
                return torch.nn.functional.gelu(x, approximate="tanh")
            case Activation.SILU:
                return torch.nn.functional.silu(x)


class Shape(NamedTuple):
    """What decides how fast a layer is."""

    inputs: int
    outputs: int
    activation: Activation

    def __str__(self) -> str:
        suffix = "" if self.activation is Activation.IDENTITY else f" {self.activation}"
        return f"{self.inputs}x{self.outputs}{suffix}"


class PackedWeight(NamedTuple):
    """A weight in the native kernels' order."""

    struct: Linear
    tensors: tuple[Tensor, ...]
    """What the struct points at."""


class Int8Weight:
    """`activation(x @ (values * scale[:, None]).T + bias)`, with x quantized row by row.

    Args:
        values: int8 [outputs, inputs].
        scale: float32 [outputs].
        bias: float32 [outputs], or None.
        activation: applied to the sum.
    """

    def __init__(
        self, values: Tensor, scale: Tensor, bias: Tensor | None, *, activation: Activation = Activation.IDENTITY
    ) -> None:
        self.values = values
        self.scale = scale
        self.bias = bias
        self.activation = activation

    @property
    def shape(self) -> Shape:
        """Inputs, outputs and activation."""
        return Shape(self.values.shape[1], self.values.shape[0], self.activation)

    def dequantized(self) -> Tensor:
        """The weight in float32, [outputs, inputs]."""
        return self.values.float() * self.scale[:, None]

    def with_activation(self, activation: Activation) -> Int8Weight:
        """The same layer with an activation in its kernel."""
        return Int8Weight(self.values, self.scale, self.bias, activation=activation)

    @staticmethod
    def joined(weights: Sequence[Int8Weight]) -> Int8Weight:
        """Several layers that read the same input as one, their outputs side by side."""
        biases = [w.scale.new_zeros(len(w.scale)) if w.bias is None else w.bias for w in weights]
        return Int8Weight(
            torch.cat([w.values for w in weights]), torch.cat([w.scale for w in weights]), torch.cat(biases)
        )

    @cached_property
    def packed(self) -> PackedWeight:
        """The weight as every native kernel takes it: packed once, shared by all of them.

        Raises:
            RuntimeError: there is no native library.
        """
        outputs, inputs = self.values.shape
        padded, depth = _round_up(outputs), _round_up(inputs)
        values = self.values.contiguous()
        weight = torch.empty(padded * depth, dtype=torch.int8)
        offset = torch.empty(padded, dtype=torch.int32)
        native_library().pack(values.data_ptr(), outputs, inputs, weight.data_ptr(), offset.data_ptr())
        scale, bias = torch.zeros(padded), torch.zeros(padded)
        scale[:outputs] = self.scale
        if self.bias is not None:
            bias[:outputs] = self.bias
        tensors = (weight, offset, scale, bias)
        return PackedWeight(
            Linear(outputs, inputs, *(tensor.data_ptr() for tensor in tensors), self.activation.number), tensors
        )


def _round_up(size: int) -> int:
    return -(-size // _PAD) * _PAD
