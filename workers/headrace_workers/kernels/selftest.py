"""Does a kernel compute what it claims? Asked of every kernel on every node before it may be chosen.

Some processors saturate 16-bit intermediates and some libraries return wrong sums without a word, so the test
vectors are the worst for that: everything at the ends of the int8 range, depths that end within a register, rows that
end within a tile. The reference is exact: int32 sums by way of float64, which holds them without loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace_workers.kernels.linear import LinearKernel, quantize_inputs, quantize_rows
from headrace_workers.kernels.weights import Activation, InputRange, Int8Weight

__all__ = ["exact_reference", "failure"]

_SHAPES = ((1, 64, 16), (7, 127, 33), (16, 256, 64), (35, 513, 50))
_EXACT = ("int8", "int8-static")
"""Numerics that promise the reference's own bits. Others approximate an activation in their own way."""
_TOLERANCE = 5e-6
_NARROW = InputRange(torch.tensor([0.015]), torch.tensor([90], dtype=torch.int32))
"""Random inputs reach beyond it."""


def exact_reference(x: Tensor, weight: Int8Weight) -> Tensor:
    """What an int8 kernel must give for x, float32 [M, inputs]; the activation is torch's."""
    found, bias = weight.input_range, weight.offset_bias
    values, row_scale = quantize_rows(x) if found is None else quantize_inputs(x, found)
    sums = (values.double() @ weight.values.double().t()).float()
    y = sums * (row_scale * weight.scale[None, :])
    return weight.activation(y if bias is None else y + bias)


def failure(kernel: LinearKernel[Int8Weight]) -> str:
    """What the int8 kernel computes wrongly; empty if nothing."""
    for rows, inputs, outputs in _SHAPES:
        for name, x, weight in _cases(rows, inputs, outputs):
            try:
                got = kernel.prepare(weight)(x)
            except (RuntimeError, MemoryError) as error:
                return f"{name} {rows}x{inputs}x{outputs}: {error}"
            if not _agrees(got, exact_reference(x, weight), exact=kernel.numerics(weight.shape) in _EXACT):
                return f"{name} {rows}x{inputs}x{outputs}: wrong sums"
    return ""


def _agrees(got: Tensor, expected: Tensor, *, exact: bool) -> bool:
    if exact:
        return torch.equal(got, expected)
    return torch.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def _cases(rows: int, inputs: int, outputs: int) -> list[tuple[str, Tensor, Int8Weight]]:
    random = torch.Generator().manual_seed(rows)
    full = torch.full((rows, inputs), 3.0)
    signs = torch.where(torch.rand(rows, inputs, generator=random) < 0.5, -3.0, 3.0)
    extreme = torch.full((outputs, inputs), 127, dtype=torch.int8)
    extreme[::2] = -127
    values = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    scale, bias = torch.rand(outputs, generator=random) / 127, torch.randn(outputs, generator=random)
    x = torch.randn(rows, inputs, generator=random)
    return [
        ("all at the maximum", full, Int8Weight(extreme, scale, None)),
        ("all at the ends", signs, Int8Weight(extreme, scale, bias)),
        ("random", x, Int8Weight(values, scale, bias)),
        ("random, gelu", x, Int8Weight(values, scale, bias, activation=Activation.GELU)),
        ("by a range", x, Int8Weight(values, scale, bias, input_range=_NARROW)),
        ("by a range, at its ends", signs, Int8Weight(extreme, scale, bias, input_range=_NARROW)),
    ]
