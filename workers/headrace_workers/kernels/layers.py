"""Compressed layers as torch modules: they hold plain int8 tensors, and run on whatever kernel was chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from headrace_workers.kernels.selection import Choice, KernelTable, bucket_of
from headrace_workers.kernels.weights import Int8Weight

__all__ = ["CompressedLinear", "QuantizedEmbedding"]


class CompressedLinear(nn.Module):
    """Stands in for an `nn.Linear`. Call `prepare` before the first forward.

    A row's answer depends on that row alone: the same bits in any batch.
    """

    def __init__(self, weight: Int8Weight) -> None:
        super().__init__()
        self.source: Int8Weight | None = weight
        self.shape = weight.shape
        self.in_features, self.out_features = weight.shape.inputs, weight.shape.outputs
        self.choice: Choice | None = None
        self._runs: tuple[Callable[[Tensor], Tensor], ...] = ()

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return str(self.shape)

    def prepare(self, table: KernelTable) -> None:
        """Choose kernels and bind the weight to them."""
        assert self.source is not None, "prepare comes before release"
        self.choice = table.choose(self.source)
        bound = {kernel: kernel.prepare(self.source) for kernel in set(self.choice.kernels)}
        self._runs = tuple(bound[kernel] for kernel in self.choice.kernels)

    def release(self) -> None:
        """Let go of the plain tensors; the kernels have the weight in their own order by now."""
        self.source = None

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., inputs] to float32 [..., outputs]."""
        rows = x.reshape(-1, self.in_features)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        y = self._runs[bucket_of(rows.shape[0])](rows)
        return y.view(*x.shape[:-1], self.out_features)


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
