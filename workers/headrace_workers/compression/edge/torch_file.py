"""Exporting with torch's own means: a `torch.export` program, and ExecuTorch's for phones and boards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headrace_workers.compression.quantization.expand import expand_model
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

if TYPE_CHECKING:
    from headrace_workers.compression.edge.export import Exportable

__all__ = ["program_of", "write_executorch", "write_program"]


class _StoredLinear(nn.Module):
    """A linear layer whose weight stays quantized in the file and is dequantized as it is used, in plain operators."""

    def __init__(self, weight: Int8Weight | AffineWeight) -> None:
        super().__init__()
        symmetric = isinstance(weight, Int8Weight)
        self.group = None if isinstance(weight, Int8Weight) else weight.group
        self.register_buffer("codes", weight.values if isinstance(weight, Int8Weight) else weight.codes)
        self.register_buffer("scale", weight.scale.view(len(weight.scale), -1))
        self.register_buffer("zeros", None if symmetric else weight.zeros)  # type: ignore[union-attr]
        self.register_buffer("bias", weight.bias)

    codes: Tensor
    scale: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def _by_column(self, by_group: Tensor) -> Tensor:
        if self.group is None:
            return by_group
        return by_group.repeat_interleave(self.group, dim=1)[:, : self.codes.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        codes = self.codes.float()
        if self.zeros is not None:
            codes = codes - self._by_column(self.zeros)
        return nn.functional.linear(x, codes * self._by_column(self.scale), self.bias)


def program_of(exportable: Exportable) -> torch.export.ExportedProgram:
    """The traced module, its quantized layers must be replaced already."""
    return torch.export.export(
        exportable.module, (), dict(exportable.inputs), dynamic_shapes=dict(exportable.dynamic), strict=False
    )


def write_program(exportable: Exportable, path: Path) -> None:
    """Write a `.pt2`: `torch.export.load(path).module()` takes the inputs by name."""
    for name, stored in exportable.stored.items():
        exportable.module.set_submodule(name, _StoredLinear(stored.weight))
    torch.export.save(program_of(exportable), path)


def write_executorch(exportable: Exportable, path: Path) -> None:
    """Write a `.pte` for ExecuTorch's runtime: its method `forward` takes the inputs in order."""
    partitioner, lower = _xnnpack()
    expand_model(exportable.module)
    program = lower(program_of(exportable), partitioner=[partitioner])
    path.write_bytes(program.to_executorch().buffer)


def _xnnpack() -> tuple[Any, Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return XnnpackPartitioner(), to_edge_transform_and_lower
