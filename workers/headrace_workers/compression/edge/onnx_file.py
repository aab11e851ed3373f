"""Exporting to ONNX, quantized weights as such: in the form QDQ, which every runtime of ONNX understands.

torch traces the model with plain linear layers. Then each of their weights is replaced by its codes with a
`DequantizeLinear` behind them, already turned as the product wants them: what runtimes fuse is recognised so, and the
file holds the codes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import CompressionError
from headrace_workers.compression.quantization.expand import expanded_linear
from headrace_workers.kernels.weights import AffineWeight, InputRange, Int8Weight

if TYPE_CHECKING:
    from headrace_workers.compression.edge.export import Exportable, Stored

__all__ = ["write_onnx"]

_OPSET: Final = 21
"""The first in which `DequantizeLinear` knows 4 bits and scales by block."""
_NIBBLE_BITS: Final = 4
_MOST_BYTES: Final = (2 << 30) - (64 << 20)
"""A protobuf message ends at 2 GiB, and the graph takes some of it."""


def write_onnx(exportable: Exportable, path: Path) -> None:
    """Write an `.onnx` file.

    Raises:
        CompressionError: a quantized weight is not found again in what torch exports, or there is too much of all.
    """
    for name, stored in exportable.stored.items():
        exportable.module.set_submodule(name, expanded_linear(stored.weight))
    program: Any = torch.onnx.export(
        exportable.module,
        (),
        kwargs=dict(exportable.inputs),
        dynamic_shapes=dict(exportable.dynamic),
        input_names=list(exportable.inputs),
        output_names=[exportable.answer],
        opset_version=_OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    for name, stored in exportable.stored.items():
        _Weight(program.model.graph, name, stored).store()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose source it came from: kilobytes, and paths of this machine
    size_bytes = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size_bytes > _MOST_BYTES:
        raise CompressionError(f"its weights take {size_bytes:,} bytes, and an ONNX file holds {_MOST_BYTES:,}")
    program.save(path)


class _Weight:
    """One weight in a graph, on its way from floating point to codes."""

    def __init__(self, graph: Any, name: str, stored: Stored) -> None:
        self._graph, self._name, self._stored = graph, name, stored
        self._float = graph.initializers.get(f"{name}.weight")
        if self._float is None:
            raise CompressionError(f"torch's exporter left no tensor {name}.weight to be stored in fewer bits")

    def store(self) -> None:
        """Put codes in the place of the values, and round the layer's input if its range was calibrated."""
        users = [user for user, _ in self._float.uses()]
        if self._stored.table or any(user.op_type != "Transpose" for user in users):
            dequantized = self._dequantized(turned=False)
            self._float.replace_all_uses_with(dequantized)
        else:
            dequantized = self._dequantized(turned=True)
            for user in users:
                user.outputs[0].replace_all_uses_with(dequantized)
                self._graph.remove(user, safe=True)
        del self._graph.initializers[f"{self._name}.weight"]
        weight = self._stored.weight
        if isinstance(weight, Int8Weight) and weight.input_range is not None:
            for user, _ in tuple(dequantized.uses()):
                self._round_input(user, weight.input_range)

    def _dequantized(self, *, turned: bool) -> Any:
        """The weight in floating point as a value of the graph: [outputs, inputs], or turned."""
        if table := self._stored.table:
            inputs = [self._graph.initializers[f"{table}.{part}"] for part in ("values", "scale")]
            return self._first("DequantizeLinear", inputs, {"axis": 0})
        codes = _Codes.of(self._stored.weight)
        codes = codes.turned() if turned else codes
        parts = {"codes": codes.codes, "scale": codes.scale, "zero": codes.zero}
        inputs = [self._constant(part, values) for part, values in parts.items() if values is not None]
        attributes = {"axis": codes.axis} | ({} if codes.block is None else {"block_size": codes.block})
        return self._first("DequantizeLinear", inputs, attributes)

    def _round_input(self, user: Any, found: InputRange) -> None:
        """Let a product take its input rounded to a range in uint8."""
        scale = self._constant("input_scale", found.scale.numpy().reshape(()))
        zero = self._constant("input_zero_point", found.zero_point.numpy().astype(np.uint8).reshape(()))
        rounded = _node("QuantizeLinear", [user.inputs[0], scale, zero], {})
        restored = _node("DequantizeLinear", [rounded.outputs[0], scale, zero], {})
        self._graph.insert_before(user, [rounded, restored])
        user.replace_input_with(0, restored.outputs[0])

    def _first(self, kind: str, inputs: Sequence[Any], attributes: dict[str, int]) -> Any:
        """The output of a new node at the head of the graph, where constants are known and nothing else."""
        node = _node(kind, inputs, attributes)
        self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]

    def _constant(self, part: str, values: NDArray[Any]) -> Any:
        import onnx_ir

        name = f"{self._name}.{part}"
        if name not in self._graph.initializers:
            tensor = onnx_ir.tensor(values, name=name)
            value = onnx_ir.Value(
                name=name, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def _node(kind: str, inputs: Sequence[Any], attributes: dict[str, int]) -> Any:
    import onnx_ir

    return onnx_ir.node(kind, inputs, attributes)


class _Codes(NamedTuple):
    """A weight as `DequantizeLinear` takes it."""

    codes: NDArray[Any]
    """Int8, uint8 or uint4, [outputs, inputs]."""
    scale: NDArray[np.float32]
    """[outputs], or [outputs, groups]."""
    zero: NDArray[Any] | None
    axis: int
    block: int | None

    @staticmethod
    def of(weight: Int8Weight | AffineWeight) -> _Codes:
        if isinstance(weight, Int8Weight):
            return _Codes(weight.values.numpy(), weight.scale.numpy(), None, 0, None)
        scale, zeros = weight.scale.numpy(), weight.zeros.numpy()
        if weight.group is None:
            scale, zeros = scale[:, 0], zeros[:, 0]
        kind = _kind(weight.bits)
        axis = 0 if weight.group is None else 1
        return _Codes(weight.codes.numpy().astype(kind), scale, zeros.astype(kind), axis, weight.group)

    def turned(self) -> _Codes:
        zero = None if self.zero is None else _turned(self.zero)
        return _Codes(_turned(self.codes), _turned(self.scale), zero, 1 - self.axis, self.block)


def _turned(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values.T)


def _kind(bits: int) -> Any:
    """The least of ONNX's unsigned types that holds so many bits."""
    import ml_dtypes

    return ml_dtypes.uint4 if bits <= _NIBBLE_BITS else np.uint8
