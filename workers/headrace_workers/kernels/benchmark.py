"""`headrace bench kernels`: a model's own layers, in int8 and in fp32, on this node.

Both sides of every comparison run in turn in the same moments, so that a noisy neighbour slows both. The int8 side
includes everything it needs: quantizing the activations, scaling back, the bias, the activation function.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace_workers import node
from headrace_workers.kernels.layers import CompressedLinear
from headrace_workers.kernels.library import support
from headrace_workers.kernels.linear import FP32
from headrace_workers.kernels.selection import KernelTable, bucket_of
from headrace_workers.kernels.weights import Int8Weight

__all__ = ["MINILM_SHAPES", "ROWS", "bench_kernels", "shapes_of"]

ROWS: Final = (1, 8, 32, 128, 256, 1024, 4096)
_LARGE_ROWS: Final = 256
_SECONDS_EACH: Final = 0.25
_LEAST_PAIRS: Final = 9

MINILM_SHAPES: Final = ((384, 384), (384, 1152), (384, 1536), (1536, 384))
"""(inputs, outputs) of all-MiniLM-L6-v2's linear layers: single and joined projections, both of the feed-forward."""


def shapes_of(model: nn.Module) -> list[tuple[int, int]]:
    """The distinct (inputs, outputs) of a model's linear layers, plain or compressed."""
    kinds = (nn.Linear, CompressedLinear)
    return sorted({(part.in_features, part.out_features) for part in model.modules() if isinstance(part, kinds)})


def bench_kernels(
    shapes: Iterable[tuple[int, int]] = MINILM_SHAPES,
    *,
    rows: Sequence[int] = ROWS,
    threads: int = 1,
    seconds_each: float = _SECONDS_EACH,
) -> dict[str, Any]:
    """Measure int8 against fp32 `torch.nn.functional.linear`.

    Args:
        shapes: (inputs, outputs) of the layers.
        rows: batch lengths in tokens.
        threads: compute threads of both sides.
        seconds_each: how long one shape and length is looked at.

    Returns:
        `rows`, one for each shape and length (`fp32_ms`, `kernel_ms`, `kernel`, `speedup`: the median of the ratios of
        pairs); `worst_speedup_m256`, the least speedup at 256 rows and more; `worst_speedup`, the least wherever int8
        is used; both None where it is used nowhere; and what the node is.
    """
    node.prepare_process(threads)
    table = KernelTable()
    measured = [_row(shape, length, table, seconds_each) for shape in shapes for length in rows]
    used = [row for row in measured if row["kernel"] != FP32]
    return {
        "rows": measured,
        "worst_speedup_m256": _least(row for row in used if row["m"] >= _LARGE_ROWS),
        "worst_speedup": _least(used),
        "threads": threads,
        "isa": str(support().best),
        "isa_reason": support().reason,
    }


def _least(rows: Iterable[dict[str, Any]]) -> float | None:
    return min((row["speedup"] for row in rows), default=None)


def _row(shape: tuple[int, int], rows: int, table: KernelTable, seconds_each: float) -> dict[str, Any]:
    inputs, outputs = shape
    weight, dense = _random_layer(inputs, outputs)
    choice = table.choose(weight)
    kernel = choice.kernels[bucket_of(rows)]
    run = kernel.prepare(weight)
    x = torch.randn(rows, inputs)
    fp32_s, kernel_s = _pairs(lambda: torch.nn.functional.linear(x, dense, weight.bias), lambda: run(x), seconds_each)
    return {
        "k": inputs,
        "n": outputs,
        "m": rows,
        "kernel": kernel.name,
        "fp32_ms": min(fp32_s) * 1000,
        "kernel_ms": min(kernel_s) * 1000,
        "speedup": statistics.median(a / b for a, b in zip(fp32_s, kernel_s, strict=True)),
    }


def _random_layer(inputs: int, outputs: int) -> tuple[Int8Weight, Tensor]:
    values = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    weight = Int8Weight(values, torch.rand(outputs) / 127, torch.randn(outputs))
    return weight, weight.dequantized()


def _pairs(
    one: Callable[[], Tensor], other: Callable[[], Tensor], seconds_each: float
) -> tuple[list[float], list[float]]:
    """Seconds of either, run in turn for a while."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in (one, other):
        run()
    until_s = time.perf_counter() + seconds_each
    while time.perf_counter() < until_s or len(seconds[0]) < _LEAST_PAIRS:
        for run, kept in zip((one, other), seconds, strict=True):
            started_s = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started_s)
    return seconds
