"""What a compressed linear layer is made of: weights in few bits with their scales, a bias, an activation."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from headrace_workers.kernels.library import Linear, native_library

__all__ = [
    "INT8",
    "INT8_STATIC",
    "Activation",
    "AffineWeight",
    "InputRange",
    "Int8Weight",
    "PackedWeight",
    "Shape",
]

INT8: Final = "int8"
INT8_STATIC: Final = "int8_static"
"""Schemes of `Int8Weight`: inputs quantized row by row, or by a calibrated range."""

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
    scheme: str = INT8
    """How weights and inputs are quantized."""

    def __str__(self) -> str:
        activation = "" if self.activation is Activation.IDENTITY else f" {self.activation}"
        return f"{self.inputs}x{self.outputs}{activation}{'' if self.scheme == INT8 else f' {self.scheme}'}"


class PackedWeight(NamedTuple):
    """A weight in the native kernels' order."""

    struct: Linear
    tensors: tuple[Tensor, ...]
    """What the struct points at."""


class InputRange(NamedTuple):
    """What comes into a layer, in uint8 with one scale found by calibration: `x = (code - zero_point) * scale`."""

    scale: Tensor
    """Float32 [1]."""
    zero_point: Tensor
    """Int32 [1], in 0..255."""

    @property
    def int8_zero(self) -> int:
        """What stands for 0.0 where codes are stored as int8: `code - 128`."""
        return int(self.zero_point) - 128

    def same_as(self, other: InputRange | None) -> bool:
        """Whether both quantize alike."""
        return other is not None and torch.equal(self.scale, other.scale) and self.int8_zero == other.int8_zero


class Int8Weight:
    """`activation(x @ (values * scale[:, None]).T + bias)`, with x quantized row by row, or by a calibrated range.

    Args:
        values: int8 [outputs, inputs].
        scale: float32 [outputs].
        bias: float32 [outputs], or None.
        activation: applied to the sum.
        input_range: the range of x, found by calibration; None: each row of x has its own.
    """

    def __init__(
        self,
        values: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        *,
        activation: Activation = Activation.IDENTITY,
        input_range: InputRange | None = None,
    ) -> None:
        self.values = values
        self.scale = scale
        self.bias = bias
        self.activation = activation
        self.input_range = input_range

    @property
    def shape(self) -> Shape:
        """What kernels are chosen by."""
        scheme = INT8 if self.input_range is None else INT8_STATIC
        return Shape(self.values.shape[1], self.values.shape[0], self.activation, scheme)

    @property
    def offset_bias(self) -> Tensor | None:
        """The bias, less what a calibrated zero adds to the products of int8 codes: float32 [outputs], or None."""
        if self.input_range is None:
            return self.bias
        sums = self.values.sum(1, dtype=torch.int64).double()
        owed = sums * self.scale.double() * float(self.input_range.scale) * self.input_range.int8_zero
        return ((0.0 if self.bias is None else self.bias.double()) - owed).float()

    def dequantized(self) -> Tensor:
        """The weight in float32, [outputs, inputs]."""
        return self.values.float() * self.scale[:, None]

    def with_activation(self, activation: Activation) -> Int8Weight:
        """The same layer with an activation in its kernel."""
        return Int8Weight(self.values, self.scale, self.bias, activation=activation, input_range=self.input_range)

    @staticmethod
    def joined(weights: Sequence[Int8Weight]) -> Int8Weight:
        """Several layers that read the same input as one, their outputs side by side.

        Raises:
            ValueError: they quantize that input each in its own way.
        """
        found = weights[0].input_range
        if any(not found.same_as(w.input_range) if found else w.input_range is not None for w in weights):
            raise ValueError("layers with ranges of their own cannot be joined")
        biases = [w.scale.new_zeros(len(w.scale)) if w.bias is None else w.bias for w in weights]
        return Int8Weight(
            torch.cat([w.values for w in weights]),
            torch.cat([w.scale for w in weights]),
            torch.cat(biases),
            input_range=found,
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
        if (offset_bias := self.offset_bias) is not None:
            bias[:outputs] = offset_bias
        tensors = (weight, offset, scale, bias)
        pointers = (tensor.data_ptr() for tensor in tensors)
        found = self.input_range
        input_scale, input_zero = (0.0, 0) if found is None else (float(found.scale), found.int8_zero)
        return PackedWeight(
            Linear(outputs, inputs, *pointers, self.activation.number, input_scale, input_zero), tensors
        )


class AffineWeight:
    """`activation(x @ dequantized().T + bias)`, x in floating point and weights of 2 to 8 bits.

    A weight is `(code - zero) * scale`, with a scale and a zero for each output, or for each `group` columns of it.

    Args:
        codes: uint8 [outputs, inputs], in 0..2^bits - 1.
        scale: float32 [outputs, groups].
        zero: uint8 [outputs, groups], in 0..2^bits - 1; None for symmetric weights, whose zero is 2^(bits - 1).
        bias: float32 [outputs], or None.
        bits: 2 to 8.
        group: columns that share a scale, the last group may have fewer; None: all of a row.
        activation: applied to the sum.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        *,
        bits: int,
        group: int | None = None,
        activation: Activation = Activation.IDENTITY,
    ) -> None:
        groups = 1 if group is None else -(-codes.shape[1] // group)
        if scale.shape != (codes.shape[0], groups) or (zero is not None and zero.shape != scale.shape):
            raise ValueError(f"{groups} groups of {codes.shape[0]} outputs do not fit scales of {tuple(scale.shape)}")
        self.codes = codes
        self.scale = scale
        self.zero = zero
        self.bias = bias
        self.bits = bits
        self.group = group
        self.activation = activation

    @property
    def shape(self) -> Shape:
        """What kernels are chosen by."""
        group = "" if self.group is None else f"_group{self.group}"
        return Shape(self.codes.shape[1], self.codes.shape[0], self.activation, f"affine{self.bits}{group}")

    @property
    def zeros(self) -> Tensor:
        """The code that stands for zero: float32 [outputs, groups]."""
        midpoint = float(1 << (self.bits - 1))
        return torch.full_like(self.scale, midpoint) if self.zero is None else self.zero.float()

    def dequantized(self) -> Tensor:
        """The weight in float32, [outputs, inputs]."""
        return (self.codes.float() - self._by_column(self.zeros)) * self._by_column(self.scale)

    def with_activation(self, activation: Activation) -> AffineWeight:
        """The same layer with an activation in its kernel."""
        return AffineWeight(
            self.codes, self.scale, self.zero, self.bias, bits=self.bits, group=self.group, activation=activation
        )

    def _by_column(self, by_group: Tensor) -> Tensor:
        """[outputs, groups] to what multiplies [outputs, inputs]."""
        if self.group is None:
            return by_group
        return by_group.repeat_interleave(self.group, dim=1)[:, : self.codes.shape[1]]


def tied_weight(values: Tensor, scale: Tensor, bias: Tensor | None, *, exact_inputs: bool) -> Int8Weight | AffineWeight:
    """The weight of a layer that shares the rows of an int8 table.

    Args:
        values: the table's, int8 [rows, width].
        scale: float32 [rows].
        bias: the layer's own, float32 [rows], or None.
        exact_inputs: whether its inputs stay in floating point.
    """
    if not exact_inputs:
        return Int8Weight(values, scale, bias)
    return AffineWeight((values.short() + 128).to(torch.uint8), scale[:, None], None, bias, bits=8)


def _round_up(size: int) -> int:
    return -(-size // _PAD) * _PAD
