"""A whole Llama-shaped decoder in one native call a step: its weights in the kernel's order, its pages, its steps.

Rotary embeddings are those of "RoFormer" (Su et al. 2021), norms those of "Root Mean Square Layer Normalization"
(Zhang and Sennrich 2019), the feed-forward is SwiGLU of "GLU Variants Improve Transformer" (Shazeer 2020), heads share
keys and values as in "GQA" (Ainslie et al. 2023), and pages are those of "PagedAttention" (Kwon et al. 2023).
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace_workers.kernels.affine import pack_affine
from headrace_workers.kernels.arena import Arena, huge_empty
from headrace_workers.kernels.library import Affine, Isa, Linear, native_library, support
from headrace_workers.kernels.selection import AnyWeight
from headrace_workers.kernels.weights import AffineWeight, Int8Weight

__all__ = ["PAGE", "DecoderLayer", "DecoderWeights", "NativeDecoder", "interleaved", "joined", "joining_misfit"]

PAGE: Final = 32
"""Tokens of a page; the kernel's HR_PAGE."""

_PAIR: Final = 16
"""Outputs of gate, then of up, that stand beside each other: one vector of each."""

_LINE: Final = 16
"""Floats of a cache line."""

_HALF_BYTES: Final = 2
_INT8_POINTERS: Final = ("weight", "offset", "scale", "bias")
_AFFINE_POINTERS: Final = ("codes", "scale", "zero", "bias")

Struct = TypeVar("Struct", Linear, Affine)


class DecoderLayer(NamedTuple):
    """The weights of one layer."""

    qkv: AnyWeight
    """Query, key and value joined."""
    out: AnyWeight
    up: AnyWeight
    """Gate and up, `interleaved`."""
    down: AnyWeight
    attention_norm: Tensor
    """Float32 [width]."""
    feed_forward_norm: Tensor
    query_norm: Tensor | None
    """Float32 [head_dim], where queries and keys are normalized head by head."""
    key_norm: Tensor | None
    heads: int
    kv_heads: int
    window: int
    """How many tokens a token sees, itself included; 0: all before it."""


class DecoderWeights(NamedTuple):
    """Everything a decoder is made of."""

    layers: Iterable[DecoderLayer]
    """Taken one by one, so that no more than one needs to be there in a form of its own."""
    table: Tensor
    """Embeddings, float32 or int8 [vocabulary, width]."""
    table_scale: Tensor | None
    """Float32 [vocabulary], for a table in int8."""
    final_norm: Tensor
    head: AnyWeight
    cosines: Tensor
    """Float32 [positions, head_dim / 2]."""
    sines: Tensor
    head_dim: int
    """A multiple of 16."""
    eps: float


class _Layer(ctypes.Structure):
    """`hr_layer`."""

    _fields_ = [("few_bit", ctypes.c_int64), ("int8", Linear), ("affine", Affine)]


class _DecoderLayer(ctypes.Structure):
    """`hr_decoder_layer`."""

    _fields_ = [
        ("qkv", _Layer),
        ("out", _Layer),
        ("up", _Layer),
        ("down", _Layer),
        ("attention_norm", ctypes.c_void_p),
        ("feed_forward_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("middle", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("cache", ctypes.c_void_p),
    ]


class _Decoder(ctypes.Structure):
    """`hr_decoder`."""

    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("depth", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("most_qkv", ctypes.c_int64),
        ("most_middle", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("table", ctypes.c_void_p),
        ("table_codes", ctypes.c_void_p),
        ("table_scale", ctypes.c_void_p),
        ("final_norm", ctypes.c_void_p),
        ("head", _Layer),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
    ]


class _Step(ctypes.Structure):
    """`hr_decoder_step`."""

    _fields_ = [
        ("tokens", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("sequences", ctypes.c_int64),
        ("page_stride", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("wanted_rows", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_int64),
        ("best", ctypes.c_void_p),
    ]


def joining_misfit(weights: Sequence[AnyWeight]) -> str:
    """Why layers that read the same input cannot be one layer; empty if they can."""
    first = weights[0]
    if len({type(weight) for weight in weights}) > 1:
        return "layers in int8 and in few bits cannot be joined"
    if isinstance(first, AffineWeight):
        alike = {(weight.bits, weight.group) for weight in weights if isinstance(weight, AffineWeight)}
        return "" if len(alike) == 1 else "layers of different bits or groups cannot be joined"
    ranges = [weight.input_range for weight in weights if isinstance(weight, Int8Weight)]
    found = first.input_range
    same = all(found.same_as(other) if found else other is None for other in ranges)
    return "" if same else "layers with ranges of their own cannot be joined"


def joined(weights: Sequence[AnyWeight]) -> AnyWeight:
    """Layers that read the same input as one, their outputs side by side; every output keeps its own bits.

    Raises:
        ValueError: they cannot be one; the message is `joining_misfit`'s.
    """
    if problem := joining_misfit(weights):
        raise ValueError(problem)
    int8 = [weight for weight in weights if isinstance(weight, Int8Weight)]
    return Int8Weight.joined(int8) if int8 else _joined_affine([w for w in weights if isinstance(w, AffineWeight)])


def interleaved(gate: AnyWeight, up: AnyWeight) -> AnyWeight:
    """Both as one layer: 16 outputs of the gate, 16 of the other, and so on. Their number is a multiple of 16.

    Raises:
        ValueError: they are quantized in ways that cannot be one layer's.
    """
    both = joined([gate, up])
    return _picked(both, torch.arange(both.shape.outputs).view(2, -1, _PAIR).transpose(0, 1).reshape(-1))


def _joined_affine(weights: Sequence[AffineWeight]) -> AffineWeight:
    first = weights[0]
    symmetric = all(weight.zero is None for weight in weights)
    return AffineWeight(
        torch.cat([weight.codes for weight in weights]),
        torch.cat([weight.scale for weight in weights]),
        None if symmetric else torch.cat([weight.zeros.to(torch.uint8) for weight in weights]),
        torch.cat([torch.zeros(len(w.codes)) if w.bias is None else w.bias for w in weights]),
        bits=first.bits,
        group=first.group,
    )


def _picked(weight: AnyWeight, outputs: Tensor) -> AnyWeight:
    """The layer's outputs in another order."""
    bias = None if weight.bias is None else weight.bias[outputs]
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[outputs], weight.scale[outputs], bias, input_range=weight.input_range)
    zero = None if weight.zero is None else weight.zero[outputs]
    return AffineWeight(weight.codes[outputs], weight.scale[outputs], zero, bias, bits=weight.bits, group=weight.group)


class NativeDecoder:
    """A decoder bound to the native kernel.

    Args:
        weights: read once and packed; they may be let go of afterwards.
        fine: whether the inputs of int8 layers keep about 16 bits, in two lines of int8, in place of 8. It costs a
            second integer product, which matters where there are many rows.

    Raises:
        RuntimeError: there is no native library.
    """

    def __init__(self, weights: DecoderWeights, *, fine: bool = True) -> None:
        self._fine = fine
        self._library = native_library()
        self._isa = list(Isa).index(support().best)
        self._arena = Arena()
        self._keep: list[Tensor] = []
        self.products: Counter[str] = Counter()
        """How many products there are of each scheme, the head's among them."""
        layers = [self._layer(layer) for layer in weights.layers]
        self._layers = (_DecoderLayer * len(layers))(*layers)
        self._kv_heads = [layer.kv_heads for layer in layers]
        self._pages = torch.empty(0, dtype=torch.uint8)
        self._struct = self._decoder(weights)
        self._head_dim = weights.head_dim
        self.vocabulary = int(weights.head.shape.outputs)
        self._logits = torch.empty(1, (-(-self.vocabulary // _LINE) | 1) * _LINE)
        self._best = np.empty(1, np.int32)
        self.positions = len(weights.cosines)

    @property
    def page_bytes(self) -> int:
        """Of all layers together."""
        heads: int = sum(self._kv_heads)
        return heads * 2 * self._head_dim * PAGE * _HALF_BYTES

    def allocate(self, pages: int) -> None:
        """Make room for pages.

        Raises:
            MemoryError: there is none.
        """
        self._pages = huge_empty(pages * self.page_bytes)
        at = self._pages.data_ptr()
        for layer, kv_heads in zip(self._layers, self._kv_heads, strict=True):
            layer.cache = at
            at += pages * kv_heads * 2 * self._head_dim * PAGE * _HALF_BYTES

    def run(
        self,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int32],
        positions: NDArray[np.int32],
        pages: NDArray[np.int32],
        wanted: NDArray[np.int32],
        *,
        threads: int,
    ) -> Tensor:
        """Compute a step; the arrays are those of `generation.runner.Step`, contiguous, and name what exists only.

        Returns:
            float32 [wanted, vocabulary], its rows apart in memory, valid until the next call.

        Raises:
            MemoryError: there is none for what lies between layers.
        """
        logits = self._room(len(wanted))
        step = _Step(
            tokens.ctypes.data,
            starts.ctypes.data,
            positions.ctypes.data,
            pages.ctypes.data,
            len(positions),
            pages.shape[1],
            wanted.ctypes.data,
            len(wanted),
            logits.data_ptr(),
            logits.stride(0),
            self._best.ctypes.data,
        )
        if self._library.decoder(ctypes.addressof(self._struct), ctypes.addressof(step), self._isa, threads):
            raise MemoryError("no memory for what lies between the layers of a step")
        return logits

    def best(self, rows: int) -> list[int]:
        """For each row of the last step, which logit is the first of the largest, or the first that is NaN."""
        found: list[int] = self._best[:rows].tolist()
        return found

    def _room(self, rows: int) -> Tensor:
        """Where logits go. An odd number of cache lines from row to row, or they push each other out of the caches."""
        if rows > len(self._logits):
            self._logits = torch.empty(rows, self._logits.shape[1])
            self._best = np.empty(rows, np.int32)
        return self._logits[:rows, : self.vocabulary]

    def _decoder(self, weights: DecoderWeights) -> _Decoder:
        table = self._pointer(weights.table)
        int8 = weights.table_scale is not None
        return _Decoder(
            ctypes.addressof(self._layers),
            len(self._layers),
            weights.table.shape[1],
            weights.head_dim,
            max((layer.heads + 2 * layer.kv_heads) * weights.head_dim for layer in self._layers),
            max(layer.middle for layer in self._layers),
            weights.eps,
            weights.head_dim**-0.5,
            None if int8 else table,
            table if int8 else None,
            self._floats(weights.table_scale),
            self._floats(weights.final_norm),
            self._packed(weights.head),
            self._floats(weights.cosines),
            self._floats(weights.sines),
        )

    def _layer(self, layer: DecoderLayer) -> _DecoderLayer:
        return _DecoderLayer(
            *(self._packed(weight) for weight in (layer.qkv, layer.out, layer.up, layer.down)),
            self._floats(layer.attention_norm),
            self._floats(layer.feed_forward_norm),
            self._floats(layer.query_norm),
            self._floats(layer.key_norm),
            layer.heads,
            layer.kv_heads,
            layer.down.shape.inputs,
            layer.window,
            None,
        )

    def _packed(self, weight: AnyWeight) -> _Layer:
        self.products[weight.shape.scheme] += 1
        if isinstance(weight, Int8Weight):
            # packed in an object of its own, as the weight itself would hold on to it
            int8 = weight.with_activation(weight.activation).packed
            int8.struct.fine = self._fine and weight.input_range is None
            return _Layer(0, self._moved(int8.struct, _INT8_POINTERS, int8.tensors), Affine())
        few_bit = pack_affine(weight)
        return _Layer(1, Linear(), self._moved(few_bit.struct, _AFFINE_POINTERS, few_bit.tensors))

    def _moved(self, struct: Struct, names: Sequence[str], tensors: Sequence[Tensor]) -> Struct:
        """The struct, pointing at copies of its tensors in the arena."""
        copy = type(struct).from_buffer_copy(struct)
        for name, tensor in zip(names, tensors, strict=True):
            setattr(copy, name, self._pointer(tensor))
        return copy

    def _floats(self, values: Tensor | None) -> int | None:
        return None if values is None else self._pointer(values.detach().float())

    def _pointer(self, tensor: Tensor) -> int:
        self._keep.append(self._arena.keep(tensor))
        return self._keep[-1].data_ptr()
