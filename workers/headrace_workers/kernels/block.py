"""Whole transformer blocks in one native call, where a block is one that we know and proves to be it.

A block is recognised by the names of its parts (BERT and its kin, DistilBERT), replaced, and kept only if it answers
like the block it replaces on random tokens: the names promise nothing about what the code between them does. Models of
any other make run layer by layer. Blocks of one model may differ: how many heads one has and how wide its feed-forward
is are told by its own tensors, as pruning left them.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from headrace_workers.kernels import library as native
from headrace_workers.kernels.attention import Packing, current_packing, packed
from headrace_workers.kernels.layers import CompressedLinear
from headrace_workers.kernels.selection import BUCKETS, KernelTable, bucket_of
from headrace_workers.kernels.weights import Activation, Int8Weight, PackedWeight

__all__ = ["FusedBlock", "activation_of", "fuse_blocks"]

log = logging.getLogger(__name__)

_LANES: Final = 16
_TOLERANCE: Final = 1e-2
"""Relative distance allowed between a block and its replacement. Both round activations to int8, and a difference in
the last bit can move a value to the next step: about 1e-3. A wrong structure is off by about one."""
_PROBE_LENGTHS: Final = (1, 16, 5, 33)
_REPEATS: Final = 5


class BlockParts(NamedTuple):
    """What a post-norm block is made of."""

    query: CompressedLinear
    key: CompressedLinear
    value: CompressedLinear
    out: CompressedLinear
    up: CompressedLinear
    down: CompressedLinear
    attention_norm: nn.LayerNorm
    output_norm: nn.LayerNorm
    activation: Activation | None
    heads: int
    head_dim: int
    scale: float

    @property
    def linears(self) -> tuple[CompressedLinear, ...]:
        """The six layers."""
        return self[:6]

    @property
    def misfit(self) -> str:
        """Why it cannot be one native call; empty if it can."""
        if not all(isinstance(layer, CompressedLinear) and layer.source is not None for layer in self.linears):
            return "not all of its layers are in int8"
        if not all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in self[6:8]):
            return "its norms are no layer norms with a bias"
        if self.activation is None:
            return "its activation has no kernel"
        if not self.heads or self.head_dim % _LANES:
            return f"it has {self.heads} heads of {self.head_dim}; {_LANES} must divide that"
        return "" if self._fits() else "the sizes of its layers do not fit each other"

    def _fits(self) -> bool:
        """Whether outputs are inputs of the next layer, all the way round."""
        inner, width = self.heads * self.head_dim, self.query.in_features
        projections = (self.query, self.key, self.value)
        norms = (self.attention_norm, self.output_norm)
        return (
            all((layer.in_features, layer.out_features) == (width, inner) for layer in projections)
            and (self.out.in_features, self.out.out_features) == (inner, width)
            and (self.up.in_features, self.down.out_features) == (width, width)
            and self.up.out_features == self.down.in_features
            and all(norm.normalized_shape == (width,) for norm in norms)
            and _share_a_range(projections)
        )


def _share_a_range(layers: Sequence[CompressedLinear]) -> bool:
    """Whether layers that read the same input quantize it alike, so that one product can serve them all."""
    first, *others = (layer.source.input_range for layer in layers if layer.source is not None)
    return all(first.same_as(other) if first is not None else other is None for other in others)


def activation_of(function: Any) -> Activation | None:
    """Which activation a module or function is, told by what it does to a few numbers; None if we have no kernel."""
    x = torch.linspace(-6, 6, 97)
    try:
        y = function(x)
    except Exception:  # whatever it is, it is not a plain activation
        return None
    for activation in Activation:
        if isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, activation(x), rtol=1e-6, atol=1e-6):
            return activation
    return None


def _bert_parts(block: Any) -> BlockParts:
    attention, output = block.attention.self, block.output
    return BlockParts(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        out=block.attention.output.dense,
        up=block.intermediate.dense,
        down=output.dense,
        attention_norm=block.attention.output.LayerNorm,
        output_norm=output.LayerNorm,
        activation=activation_of(block.intermediate.intermediate_act_fn),
        heads=attention.query.out_features // attention.attention_head_size,
        head_dim=attention.attention_head_size,
        scale=attention.attention_head_size**-0.5,
    )


def _distilbert_parts(block: Any) -> BlockParts:
    attention, ffn = block.attention, block.ffn
    return BlockParts(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        out=attention.out_lin,
        up=ffn.lin1,
        down=ffn.lin2,
        attention_norm=block.sa_layer_norm,
        output_norm=block.output_layer_norm,
        activation=activation_of(ffn.activation),
        heads=attention.q_lin.out_features // attention.attention_head_size,
        head_dim=attention.attention_head_size,
        scale=attention.attention_head_size**-0.5,
    )


_MAKES: Final[tuple[Callable[[Any], BlockParts], ...]] = (_bert_parts, _distilbert_parts)


def _parts(block: nn.Module) -> BlockParts | None:
    for make in _MAKES:
        try:
            return make(block)
        except AttributeError:
            continue
    return None


class FusedBlock(nn.Module):
    """A transformer block in one native call. Its answers depend on each sequence alone, bit for bit.

    Args:
        parts: of the block it replaces.
        table: who chooses kernels.

    Raises:
        LookupError: on this node one of its layers is better off in fp32 or on torch's kernels.
    """

    def __init__(self, parts: BlockParts, table: KernelTable) -> None:
        super().__init__()
        qkv, out, up, down = _weights(parts)
        for weight in (qkv, out, up, down):
            if not all(kernel.name.startswith("native") for kernel in table.choose(weight).kernels):
                raise LookupError(f"{weight.shape} does not run on a native kernel")
        self._library = native.native_library()
        self._keep: list[Tensor | PackedWeight] = [weight.packed for weight in (qkv, out, up, down)]
        self._struct = native.Block(
            *(weight.packed.struct for weight in (qkv, out, up, down)),
            self._norm(parts.attention_norm),
            self._norm(parts.output_norm),
            parts.heads,
            parts.head_dim,
            parts.scale,
        )
        self._address = ctypes.addressof(self._struct)
        self._isas = [native.support().best] * len(BUCKETS)
        self.wraps = False
        """Whether the replaced block gave its answer in a tuple."""

    def _norm(self, norm: nn.LayerNorm) -> native.Norm:
        weight, bias = norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous()
        self._keep += [weight, bias]
        return native.Norm(weight.data_ptr(), bias.data_ptr(), norm.eps)

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        """Float32 [1, tokens, width] to the same, by the current packing."""
        packing = current_packing()
        x = hidden_states[0].contiguous()
        y = torch.empty_like(x)
        self._run(x, packing, y, self._isas[bucket_of(x.shape[0])])
        return (y[None],) if self.wraps else y[None]

    def _run(self, x: Tensor, packing: Packing, y: Tensor, isa: native.Isa) -> None:
        failed = self._library.block(
            self._address,
            x.data_ptr(),
            x.shape[0],
            packing.starts.data_ptr(),
            len(packing.lengths),
            y.data_ptr(),
            list(native.Isa).index(isa),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a kernel's scratch space")

    def time_s(self, rows: int, isa: native.Isa) -> float:
        """One run over `rows` rows on an instruction set."""
        x = torch.randn(rows, self.width)
        y, packing = torch.empty_like(x), Packing([rows])
        started_s = time.perf_counter()
        self._run(x, packing, y, isa)
        return time.perf_counter() - started_s

    @property
    def width(self) -> int:
        """Floats of one token."""
        return int(self._struct.out.outputs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What decides how long it takes: width, heads, head size and the feed-forward's width."""
        block = self._struct
        return int(block.out.outputs), int(block.heads), int(block.head_dim), int(block.up.outputs)

    def use(self, isas: list[native.Isa]) -> None:
        """Set the instruction set of each bucket of batch lengths. All give the same bits."""
        self._isas = isas


def _weights(parts: BlockParts) -> tuple[Int8Weight, Int8Weight, Int8Weight, Int8Weight]:
    query, key, value, out, up, down = (layer.source for layer in parts.linears)
    assert query and key and value and out and up and down  # noqa: PT018  (`misfit` saw to it)
    assert parts.activation
    return Int8Weight.joined([query, key, value]), out, up.with_activation(parts.activation), down


def fuse_blocks(model: nn.Module, table: KernelTable) -> dict[str, Any]:
    """Replace the blocks of `model` that can be fused; its `CompressedLinear`s must be prepared and not yet released.

    Returns:
        What happened, for `EngineInfo.details`: how many blocks, and why not more.
    """
    if not native.support().isas:
        return _unfused(native.support().reason)
    known = {name: parts for name, module in model.named_modules() if (parts := _parts(module)) is not None}
    if not known:
        return _unfused("no block of a known make")
    found = {name: parts for name, parts in known.items() if not parts.misfit}
    if not found:
        return _unfused(next(iter(known.values())).misfit)
    fused, reason = _fused(found, table)
    if not fused:
        return _unfused(reason)
    distance = max(_adopt_form(model.get_submodule(name), block) for name, block in fused.items())
    if not distance < _TOLERANCE:
        log.warning("blocks are not fused: they answer otherwise than the model's own (%.3g)", distance)
        return _unfused(f"its blocks are not what their names say: off by {distance:.2g}")
    isas = _choose_isas(fused.values(), table)
    for name, block in fused.items():
        model.set_submodule(name, block)
    why_not_more = {"reason": reason} if reason else {}
    return {"fused_blocks": len(fused), "distance": distance, "isas": [str(isa) for isa in isas], **why_not_more}


def _fused(found: Mapping[str, BlockParts], table: KernelTable) -> tuple[dict[str, FusedBlock], str]:
    """The blocks that run natively as a whole, and why the last of the others does not."""
    fused, reason = {}, ""
    for name, parts in found.items():
        try:
            fused[name] = FusedBlock(parts, table)
        except LookupError as error:
            reason = str(error)
    return fused, reason


def _unfused(reason: str) -> dict[str, Any]:
    return {"fused_blocks": 0, "reason": reason}


@torch.inference_mode()
def _adopt_form(original: nn.Module, block: FusedBlock) -> float:
    """How far `block` is from the block it replaces, on random tokens; and whether that answers in a tuple."""
    packing = Packing(_PROBE_LENGTHS)
    x = torch.randn(1, packing.tokens, block.width, generator=torch.Generator().manual_seed(0))
    with packed(packing):
        expected, got = original(x), block(x)
    if isinstance(expected, tuple):
        block.wraps, expected = True, expected[0]
    return float((got - expected).norm() / expected.norm())


def _choose_isas(blocks: Iterable[FusedBlock], table: KernelTable) -> list[native.Isa]:
    """Set every block's instruction sets, measured once for blocks of the same sizes; those of the first."""
    chosen: dict[tuple[int, ...], list[native.Isa]] = {}
    for block in blocks:
        if block.sizes not in chosen:
            chosen[block.sizes] = _best_isas(block, table)
        block.use(chosen[block.sizes])
    return next(iter(chosen.values()))


def _best_isas(block: FusedBlock, table: KernelTable) -> list[native.Isa]:
    """The fastest instruction set for each bucket of batch lengths."""
    isas = native.support().isas
    if table.policy != "measured" or len(isas) == 1:
        return [isas[0]] * len(BUCKETS)
    best = []
    for rows in BUCKETS:
        timings_s = dict.fromkeys(isas, float("inf"))
        for _ in range(_REPEATS):
            for isa in isas:
                timings_s[isa] = min(timings_s[isa], block.time_s(rows, isa))
        best.append(min(isas, key=timings_s.__getitem__))
    return best
