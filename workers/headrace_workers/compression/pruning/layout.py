"""Layout: where in a model the parts are that can be cut, whatever its architecture calls them.

A list of blocks is recognised by what its blocks are made of, not by the model's name, so that a module of one's own
with such blocks is pruned like transformers' models. That names promise nothing about the code between them is why
`structured` compares every cut model with the uncut one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from headrace.errors import StageError

__all__ = ["Attention", "Block", "Ffn", "Layout", "layout_of"]


@dataclass(frozen=True)
class Ffn:
    """Linear layers around hidden neurons: rows of `inputs`, columns of `output`."""

    inputs: tuple[str, ...]
    """One module, or two of which one gates the other."""
    output: str
    width: int
    """Neurons."""

    @property
    def units(self) -> int:
        """How many parts can be cut one by one."""
        return self.width

    @property
    def unit_width(self) -> int:
        """Columns of `output` that belong to a unit."""
        return 1


@dataclass(frozen=True)
class Attention:
    """Multi-head attention. Heads that share a key and value head are cut together (grouped-query attention)."""

    module: str
    """Whose attributes say how many heads there are."""
    query: str
    key: str
    value: str
    output: str
    heads: int
    kv_heads: int
    head_size: int

    @property
    def units(self) -> int:
        """Key and value heads, each with its queries."""
        return self.kv_heads

    @property
    def unit_width(self) -> int:
        """Columns of `output` that belong to a unit."""
        return self.heads // self.kv_heads * self.head_size


@dataclass(frozen=True)
class Block:
    """One layer, in the sense of "a model of twelve layers"."""

    name: str
    ffn: Ffn | None = None
    attention: Attention | None = None


@dataclass(frozen=True)
class Layout:
    """What of a model can be cut."""

    blocks: tuple[Block, ...]
    path: str | None = None
    """The `nn.ModuleList` of the blocks; None where no blocks can be left out."""
    why_no_heads: str = ""
    """Why attention heads cannot be cut, where they cannot."""

    @property
    def ffns(self) -> list[Ffn]:
        """All of them, first block first."""
        return [block.ffn for block in self.blocks if block.ffn is not None]

    @property
    def attentions(self) -> list[Attention]:
        """All of them, first block first."""
        return [block.attention for block in self.blocks if block.attention is not None]


@dataclass(frozen=True)
class _Family:
    """What architectures that are alike call their parts, by their names within a block."""

    ffn: tuple[tuple[str, ...], str]
    attention: tuple[str, str, str, str, str]
    """The module with the attributes, then query, key, value, output."""
    why_no_heads: str = ""


_FAMILIES: Final = (
    _Family(  # BERT, RoBERTa, XLM-R, Electra, CamemBERT, …
        (("intermediate.dense",), "output.dense"),
        (
            "attention.self",
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ),
    ),
    _Family(
        (("ffn.lin1",), "ffn.lin2"),
        ("attention", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    ),
    _Family(
        (("intermediate.dense",), "output.dense"),
        ("attention.attn", "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        why_no_heads="all blocks of MPNet share one position bias with a column for each head",
    ),
    _Family(  # Llama, Mistral, Qwen2, Qwen3, SmolLM2, Gemma, …
        (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
        ("self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ),
)
_BETWEEN: Final = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.Hardswish,
    nn.Mish,
    nn.Softplus,
    nn.Dropout,
    nn.Identity,
)
"""What may stand between two linear layers without mixing neurons."""


def layout_of(module: nn.Module) -> Layout:
    """Find blocks, FFNs and attention heads.

    A module that has none of the blocks known here is searched for chains of linear layers in an `nn.Sequential`, and
    may tell of others in an attribute ``prunable_pairs``: pairs of names of linear layers, the first of which feeds,
    neuron by neuron, nothing but the second.

    Raises:
        StageError: there is nothing of the kind; the message says what was looked for.
    """
    for path, blocks in module.named_modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
            found, family = max(((_blocks(path, blocks, each), each) for each in _FAMILIES), key=_parts_of)
            if _parts_of((found, family)):
                return Layout(found, path, family.why_no_heads)
    pairs = [*_declared(module), *_chained(module)]
    if not pairs:
        raise StageError(_nothing_in(module))
    return Layout(tuple(Block(pair.output, ffn=pair) for pair in pairs))


def _blocks(path: str, blocks: nn.ModuleList, family: _Family) -> tuple[Block, ...]:
    return tuple(_block(f"{path}.{place}", block, family) for place, block in enumerate(blocks))


def _block(name: str, block: nn.Module, family: _Family) -> Block:
    return Block(name, _ffn(block, name, *family.ffn), _attention(block, name, family))


def _parts_of(match: tuple[tuple[Block, ...], _Family]) -> int:
    """How much of the blocks a family's names found: BERT's and MPNet's differ in their attention only."""
    return sum((block.ffn is not None) + (block.attention is not None) for block in match[0])


def _ffn(within: nn.Module, prefix: str, inputs: Sequence[str], output: str) -> Ffn | None:
    into = [_linear(within, name) for name in inputs]
    out = _linear(within, output)
    if out is None or any(linear is None or linear.out_features != out.in_features for linear in into):
        return None
    return Ffn(tuple(_joined(prefix, name) for name in inputs), _joined(prefix, output), out.in_features)


def _attention(block: nn.Module, prefix: str, family: _Family) -> Attention | None:
    query, key, value, out = (_linear(block, name) for name in family.attention[1:])
    if query is None or key is None or value is None or out is None:
        return None
    size = _head_size(block.get_submodule(family.attention[0]))
    fits = query.out_features == out.in_features and key.out_features == value.out_features
    if not size or not fits or query.out_features % size or key.out_features % size:
        return None
    heads, kv_heads = query.out_features // size, key.out_features // size
    if heads % kv_heads:
        return None
    module, *names = (_joined(prefix, name) for name in family.attention)
    return Attention(module, names[0], names[1], names[2], names[3], heads, kv_heads, size)


def _head_size(attention: Any) -> int:
    for name in ("attention_head_size", "head_dim"):
        size = getattr(attention, name, None)
        if isinstance(size, int):
            return size
    return 0


def _declared(module: nn.Module) -> Iterator[Ffn]:
    for first, second in getattr(module, "prunable_pairs", ()):
        pair = _ffn(module, "", (first,), second)
        if pair is None:
            raise StageError(f"prunable_pairs names {first!r} and {second!r}, which are not two linear layers that fit")
        yield pair


def _chained(module: nn.Module) -> Iterator[Ffn]:
    """Linear, then only what works neuron by neuron, then Linear."""
    for path, chain in module.named_modules():
        before: str | None = None
        for name, part in chain.named_children() if isinstance(chain, nn.Sequential) else ():
            if isinstance(part, nn.Linear):
                if before is not None and (pair := _ffn(chain, path, (before,), name)):
                    yield pair
                before = name
            elif not isinstance(part, _BETWEEN):
                before = None


def _linear(within: nn.Module, name: str) -> nn.Linear | None:
    try:
        found = within.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear) else None


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _nothing_in(module: nn.Module) -> str:
    families = "; ".join(f"{', '.join(family.ffn[0])} and {family.ffn[1]}" for family in _FAMILIES)
    return (
        f"{type(module).__name__} has nothing that can be cut: no list of blocks with linear layers named {families}; "
        "no nn.Sequential in which an activation stands between two linear layers; and no attribute prunable_pairs"
    )
