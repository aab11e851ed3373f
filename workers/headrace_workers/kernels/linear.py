"""Linear kernels: several ways to run one compressed layer, behind one interface.

`numerics` is what makes them exchangeable: two kernels of the same numerics give the same bits for every input,
so a layer may use one for short batches and the other for long ones. Kernels of different numerics never share a
layer, or a job's answer would depend on how many others were in its batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from headrace_workers.kernels.library import Isa, native_library, support
from headrace_workers.kernels.weights import (
    INT8_STATIC,
    Activation,
    AffineWeight,
    InputRange,
    Int8Weight,
    PackedWeight,
    Shape,
)

__all__ = [
    "FP32",
    "Fp32Kernel",
    "LinearKernel",
    "NativeKernel",
    "Run",
    "TorchInt8Kernel",
    "int8_kernels",
    "quantize_inputs",
    "quantize_rows",
]

FP32: Final = "fp32"
_EXACT: Final = (Activation.IDENTITY, Activation.RELU)
_MOST_INPUTS: Final = 65_000
"""Above it a sum of products of bytes can leave int32."""
_LARGEST_FLOAT: Final = torch.finfo(torch.float32).max
_SMALLEST_SCALE: Final = 1e-20

Run = Callable[[Tensor], Tensor]
Weight = TypeVar("Weight", contravariant=True)


class LinearKernel(Protocol[Weight]):
    """One way to run a compressed linear layer."""

    @property
    def name(self) -> str:
        """How tables and logs call it."""
        ...

    def numerics(self, shape: Shape) -> str:
        """Kernels that give the same word for a shape give the same bits for every input."""
        ...

    def refusal(self, shape: Shape) -> str:
        """Why this kernel cannot run the shape; empty if it can."""
        ...

    def prepare(self, weight: Weight) -> Run:
        """The layer as a function: float32 [M, inputs], contiguous rows, to float32 [M, outputs]; M may be zero."""
        ...


def _int8(shape: Shape) -> str:
    """How activations are rounded."""
    return "int8-static" if shape.scheme == INT8_STATIC else "int8"


class NativeKernel:
    """Our compiled kernel on one instruction set: quantizing, product, scaling, bias and activation in one call."""

    def __init__(self, isa: Isa) -> None:
        self.name = f"native_{isa}"
        self._isa = list(Isa).index(isa)

    def numerics(self, shape: Shape) -> str:
        """All instruction sets agree; torch agrees too unless an activation follows that it approximates otherwise."""
        return _int8(shape) if shape.activation in _EXACT else f"{_int8(shape)}-native"

    def refusal(self, shape: Shape) -> str:
        """Only sizes that could overflow are refused."""
        return f"more than {_MOST_INPUTS:,} inputs" if shape.inputs > _MOST_INPUTS else ""

    def prepare(self, weight: Int8Weight) -> Run:
        """Pack the weight and bind it."""
        return _NativeLayer(weight.packed, self._isa)


class _NativeLayer:
    """A packed layer bound to an instruction set."""

    def __init__(self, packed: PackedWeight, isa: int) -> None:
        self._packed = packed
        self._address = ctypes.addressof(packed.struct)
        self._outputs = packed.struct.outputs
        self._isa = isa
        self._run = native_library().linear

    def __call__(self, x: Tensor) -> Tensor:
        outputs, y = self._outputs, x.new_empty(x.shape[0], self._outputs)
        if self._run(
            self._address,
            x.data_ptr(),
            x.stride(0),
            x.shape[0],
            y.data_ptr(),
            outputs,
            self._isa,
            torch.get_num_threads(),
        ):
            raise MemoryError("no memory for a kernel's scratch space")
        return y


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own largest magnitude.

    Args:
        x: float32 [M, K].

    Returns:
        int8 [M, K] and the scales, float32 [M, 1]. A row with NaN or infinity has all values zero and a scale that
        makes every answer NaN.
    """
    largest = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    scale = (largest / 127.0).clamp_min(_SMALLEST_SCALE)
    finite = largest <= _LARGEST_FLOAT
    values = torch.where(finite, x * (1.0 / scale), 0.0).round().to(torch.int8)
    return values, scale


def quantize_inputs(x: Tensor, found: InputRange) -> tuple[Tensor, Tensor]:
    """Quantize by a calibrated range; what lies outside of it is cut off.

    Args:
        x: float32 [M, K].
        found: the range, the same for all rows.

    Returns:
        int8 [M, K], whose zero is `found.int8_zero`, and the scales, float32 [M, 1]: the range's, and NaN for a row
        with NaN or infinity, which makes every answer of it NaN.
    """
    zero = found.int8_zero
    scaled = (x * (1.0 / found.scale)).clamp_(-128 - zero, 127 - zero)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    return scaled.round_().add_(zero).to(torch.int8), torch.where(largest <= _LARGEST_FLOAT, found.scale, torch.nan)


class TorchInt8Kernel:
    """The same arithmetic out of torch's own operators, for processors that the native kernels do not know.

    oneDNN's fused operator for calibrated ranges, `onednn.qlinear_pointwise`, is no candidate, by measurement (torch
    2.13): it rounds a row's last bits by the length of its batch at some widths, and asked for bare sums, which it
    gives alike in every batch, it is no faster than this.
    """

    name = "torch_int8"

    def numerics(self, shape: Shape) -> str:
        """The native kernels' bits, except behind an activation that torch approximates in its own way."""
        return _int8(shape) if shape.activation in _EXACT else f"{_int8(shape)}-torch"

    def refusal(self, shape: Shape) -> str:
        """Only sizes that could overflow are refused."""
        return f"more than {_MOST_INPUTS:,} inputs" if shape.inputs > _MOST_INPUTS else ""

    def prepare(self, weight: Int8Weight) -> Run:
        """Bind the weight; nothing is packed."""
        scale, bias, activation = weight.scale[None, :], weight.offset_bias, weight.activation
        found = weight.input_range
        # A copy with strides of its own: with one input a transposed view counts as contiguous, and _int_mm errs.
        columns = torch.empty(weight.shape.inputs, weight.shape.outputs, dtype=torch.int8).copy_(weight.values.t())

        def linear(x: Tensor) -> Tensor:
            values, row_scale = quantize_rows(x) if found is None else quantize_inputs(x, found)
            y = torch._int_mm(values, columns).float() * (row_scale * scale)
            return activation(y if bias is None else y + bias)

        return linear


class Fp32Kernel:
    """The plain layer, its weight dequantized once: what every other kernel has to beat.

    Inputs are taken as they are, also where a range was calibrated for them: nothing is rounded and nothing cut off.
    """

    name = FP32

    def numerics(self, _shape: Shape) -> str:
        """Activations are not quantized at all."""
        return FP32

    def refusal(self, _shape: Shape) -> str:
        """It runs anything."""
        return ""

    def prepare(self, weight: Int8Weight | AffineWeight) -> Run:
        """Dequantize the weight and bind it."""
        dense, bias, activation = weight.dequantized(), weight.bias, weight.activation
        return lambda x: activation(torch.nn.functional.linear(x, dense, bias))


@cache
def _native_kernels(isas: tuple[Isa, ...]) -> tuple[LinearKernel[Int8Weight], ...]:
    return tuple(NativeKernel(isa) for isa in isas)


def int8_kernels() -> tuple[LinearKernel[Int8Weight], ...]:
    """The int8 kernels that this process can use, the most promising first."""
    return (*_native_kernels(support().isas), TorchInt8Kernel())
