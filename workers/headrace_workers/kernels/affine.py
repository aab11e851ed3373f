"""Kernels for weights of few bits under floating-point inputs: n-bit affine, symmetric or not, by output or by group.

All candidates compute the same product, `x @ dequantized().T`, and round nothing but its sums. Ours reads the codes
themselves, an eighth of fp32's bytes at four bits, and adds in one order whatever the batch, so a row's answer is the
same bits alone and in company; torch's fp32 product is not even that.

Torch's own few-bit operators are no candidates, by measurement (torch 2.13, x86): `_weight_int4pack_mm_for_cpu` and
`_weight_int8pack_mm` run a reference loop for float32 inputs, 5 to 100 times slower than fp32; for bfloat16 inputs the
former is fast up to 8 rows and half as fast as fp32 from 128 on; and bfloat16 products on dequantized weights change a
row's bits with the length of its batch.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Final, NamedTuple

import torch
from torch import Tensor

from headrace_workers.kernels.library import Affine, native_library, support
from headrace_workers.kernels.linear import LinearKernel, Run
from headrace_workers.kernels.weights import Activation, AffineWeight, Int8Weight, Shape

__all__ = [
    "NATIVE_AFFINE",
    "NativeAffineKernel",
    "PackedAffine",
    "affine_failure",
    "affine_kernels",
    "pack_affine",
    "requantized",
]

NATIVE_AFFINE: Final = "native_affine"
_PANEL: Final = 64
_DEPTH: Final = 8
_NIBBLE_BITS: Final = 4
_MIDDLE: Final = 8
_TOLERANCE: Final = 1e-5
_SELF_TEST_BITS: Final = (3, 4, 5, 8)


class _Order(IntEnum):
    """`enum hr_codes`."""

    BYTES = 0
    NIBBLES = 1
    MIDDLE_NIBBLES = 2


class PackedAffine(NamedTuple):
    """A weight in the native kernel's order."""

    struct: Affine
    tensors: tuple[Tensor, ...]
    """What the struct points at."""


class NativeAffineKernel:
    """Our compiled kernel: codes are widened on their way into the product, bias and activation follow in one call.

    Codes less their zero are whole numbers, and a group is scaled after it was summed, so weights are not even rounded
    to fp32.
    """

    name = NATIVE_AFFINE

    def numerics(self, _shape: Shape) -> str:
        """Sums in the order of the inputs."""
        return "fp32-in-order"

    def refusal(self, _shape: Shape) -> str:
        """It runs anything."""
        return ""

    def prepare(self, weight: AffineWeight) -> Run:
        """Pack the weight and bind it."""
        return _NativeLayer(pack_affine(weight))


class _NativeLayer:
    """A packed layer as a function."""

    def __init__(self, packed: PackedAffine) -> None:
        self._packed = packed
        self._address = ctypes.addressof(packed.struct)
        self._outputs = packed.struct.outputs
        self._run = native_library().affine

    def __call__(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self._outputs)
        threads = torch.get_num_threads()
        if self._run(self._address, x.data_ptr(), x.stride(0), x.shape[0], y.data_ptr(), self._outputs, threads):
            raise MemoryError("no memory for a kernel's scratch space")
        return y


def pack_affine(weight: AffineWeight) -> PackedAffine:
    """The weight as the native kernels take it."""
    outputs, inputs = weight.codes.shape
    group = weight.group or inputs
    order, codes = _ordered(weight, group)
    bias = torch.zeros(-(-outputs // _PANEL) * _PANEL)
    if weight.bias is not None:
        bias[:outputs] = weight.bias
    tensors = (_by_panel(codes), _by_panel(weight.scale), _by_panel(weight.zeros), bias)
    pointers = (tensor.data_ptr() for tensor in tensors)
    return PackedAffine(Affine(outputs, inputs, group, order, *pointers, weight.activation.number), tensors)


def _ordered(weight: AffineWeight, group: int) -> tuple[int, Tensor]:
    """The order codes are kept in, and they themselves as uint8 or in words of eight: [outputs, columns]."""
    if weight.bits > _NIBBLE_BITS:
        return _Order.BYTES, weight.codes
    if weight.zero is not None:
        return _Order.NIBBLES, _words(weight.codes, group)
    moved = weight.codes + (_MIDDLE - (1 << weight.bits - 1))
    return _Order.MIDDLE_NIBBLES, _words(moved, group)


def _words(codes: Tensor, group: int) -> Tensor:
    """Eight inputs in an int32, the first in its lowest four bits; every group begins a word."""
    outputs, inputs = codes.shape
    grouped = torch.nn.functional.pad(codes, (0, -inputs % group)).view(outputs, -1, group)
    eights = torch.nn.functional.pad(grouped, (0, -group % _DEPTH)).view(outputs, -1, _DEPTH)
    words = torch.zeros(eights.shape[:2], dtype=torch.int32)
    for at in range(_DEPTH):
        words |= eights[..., at].int() << 4 * at
    return words


def _by_panel(by_output: Tensor) -> Tensor:
    """[outputs, columns] to [panels, columns, 64], zeros where there is no output."""
    missing = -by_output.shape[0] % _PANEL
    padded = torch.nn.functional.pad(by_output, (0, 0, 0, missing))
    return padded.view(-1, _PANEL, by_output.shape[1]).transpose(1, 2).contiguous()


def requantized(weight: AffineWeight) -> Int8Weight:
    """The nearest weight in int8 with one scale for each output, for products in integers.

    It changes answers, because its kernels round the inputs row by row; so it is for those who ask for it.
    """
    dense = weight.dequantized()
    largest = dense.abs().amax(1)
    scale = torch.where(largest > 0, largest / 127.0, 1.0)
    values = (dense / scale[:, None]).round().clamp_(-127, 127).to(torch.int8)
    return Int8Weight(values, scale, weight.bias, activation=weight.activation)


def affine_kernels() -> tuple[LinearKernel[AffineWeight], ...]:
    """The kernels for few-bit weights that this process can use, fp32 left out."""
    return (NativeAffineKernel(),) if support().isas else ()


def affine_failure(kernel: LinearKernel[AffineWeight]) -> str:
    """What the kernel computes wrongly; empty if nothing."""
    for bits in _SELF_TEST_BITS:
        for rows, inputs, outputs, group in ((1, 64, 64, 32), (9, 70, 33, 32), (14, 130, 130, None)):
            random = torch.Generator().manual_seed(bits)
            weight = _random_weight(inputs, outputs, bits, group, random)
            x = torch.randn(rows, inputs, generator=random)
            run, expected = kernel.prepare(weight), _reference(x, weight)
            if not torch.allclose(run(x).double(), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                return f"{bits} bits, {rows}x{inputs}x{outputs}: wrong sums"
            if not torch.equal(torch.cat([run(row[None]) for row in x]), run(x)):
                return f"{bits} bits, {rows}x{inputs}x{outputs}: a row's answer depends on its batch"
    return ""


def _random_weight(inputs: int, outputs: int, bits: int, group: int | None, random: torch.Generator) -> AffineWeight:
    groups = 1 if group is None else -(-inputs // group)
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
    zero = torch.randint(0, 1 << bits, (outputs, groups), generator=random, dtype=torch.uint8)
    scale = torch.rand(outputs, groups, generator=random) / (1 << bits)
    return AffineWeight(
        codes,
        scale,
        zero,
        torch.randn(outputs, generator=random),
        bits=bits,
        group=group,
        activation=Activation.GELU if bits == _NIBBLE_BITS else Activation.IDENTITY,
    )


def _reference(x: Tensor, weight: AffineWeight) -> Tensor:
    y = x.double() @ weight.dequantized().double().t()
    return weight.activation(y if weight.bias is None else y + weight.bias)
