"""Compressed layers as torch modules: they hold plain int8 tensors, and run on whatever kernel was chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from headrace_workers.kernels.affine import requantized
from headrace_workers.kernels.selection import AnyWeight, Choice, KernelTable, bucket_of
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = [
    "AffineLinear",
    "CompressedLinear",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "prepare_layers",
    "resident_bytes",
]


class QuantizedLinear(nn.Module):
    """What stands in for an `nn.Linear`, whatever its weight is. Call `prepare` before the first forward.

    A row's answer depends on that row alone, the same bits in any batch, unless fp32 was chosen: torch rounds its sums
    by the length of the batch.
    """

    def __init__(self, weight: AnyWeight) -> None:
        super().__init__()
        self.shape = weight.shape
        self.in_features, self.out_features = weight.shape.inputs, weight.shape.outputs
        self.choice: Choice | None = None
        self._runs: tuple[Callable[[Tensor], Tensor], ...] = ()

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return str(self.shape)

    def prepare(self, table: KernelTable) -> None:
        """Choose kernels and bind the weight to them."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of the plain tensors; the kernels have the weight in their own order by now."""
        raise NotImplementedError

    def _bind(self, weight: AnyWeight, table: KernelTable) -> None:
        self.choice = table.choose(weight)
        bound = {kernel: kernel.prepare(weight) for kernel in set(self.choice.kernels)}
        self._runs = tuple(bound[kernel] for kernel in self.choice.kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., inputs] to float32 [..., outputs]."""
        rows = x.reshape(-1, self.in_features)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        y = self._runs[bucket_of(rows.shape[0])](rows)
        return y.view(*x.shape[:-1], self.out_features)


class CompressedLinear(QuantizedLinear):
    """Weights in int8, inputs quantized on the way: row by row, or by a calibrated range."""

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__(weight)
        self.source: Int8Weight | None = weight

    def prepare(self, table: KernelTable) -> None:
        """See `QuantizedLinear`."""
        assert self.source is not None, "prepare comes before release"
        self._bind(self.source, table)

    def release(self) -> None:
        """See `QuantizedLinear`."""
        self.source = None


class AffineLinear(QuantizedLinear):
    """Weights in 2 to 8 bits; inputs stay in floating point, unless the table's policy is `int8`."""

    def __init__(self, weight: AffineWeight) -> None:
        super().__init__(weight)
        self.source: AffineWeight | None = weight

    def prepare(self, table: KernelTable) -> None:
        """See `QuantizedLinear`."""
        assert self.source is not None, "prepare comes before release"
        self._bind(requantized(self.source) if table.policy == "int8" else self.source, table)

    def release(self) -> None:
        """See `QuantizedLinear`."""
        self.source = None


class QuantizedEmbedding(nn.Module):
    """Stands in for an `nn.Embedding`: int8 rows with a scale each, dequantized as they are looked up.

    Args:
        values: int8 [rows, width].
        scale: float32 [rows].
    """

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = values.shape

    values: Tensor
    scale: Tensor

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 [...] to float32 [..., width]."""
        flat = ids.reshape(-1)
        rows = torch.index_select(self.values, 0, flat).float()
        rows *= torch.index_select(self.scale, 0, flat)[:, None]
        return rows.view(*ids.shape, self.embedding_dim)


def prepare_layers(module: nn.Module, table: KernelTable) -> None:
    """Give every quantized layer its kernels, and let go of the plain tensors."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.prepare(table)
            layer.release()


def resident_bytes(module: nn.Module) -> int:
    """Bytes of a model's tensors as they are kept in memory, tied ones once; kernels' own padding is not counted."""
    tensors = [*module.parameters(), *module.buffers()]
    for layer in module.modules():
        source = getattr(layer, "source", None)
        tensors += [value for value in vars(source).values() if isinstance(value, Tensor)] if source else []
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
