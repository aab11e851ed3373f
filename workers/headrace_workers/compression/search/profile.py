"""A model's shapes, and what they become when it is cut: enough to price a candidate before it is built.

Arithmetic on widths; only `profile_of`, which reads them off a model, knows torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from headrace_workers.compression.recipe import Student
from headrace_workers.compression.search.latency_table import Kernel, LinearUse

if TYPE_CHECKING:
    from headrace_workers.compression.pruning.layout import Layout

__all__ = ["LinearShape", "Profile", "Role", "profile_of"]

_SCALE_BYTES: Final = 4
_LARGE_TABLE_ROWS: Final = 1024


class Role(StrEnum):
    """What a linear layer does, as far as cutting is concerned."""

    FFN_IN = "ffn_in"
    FFN_OUT = "ffn_out"
    QUERY = "query"
    KEY_VALUE = "key_value"
    ATTENTION_OUT = "attention_out"
    OTHER = "other"


@dataclass(frozen=True)
class LinearShape:
    """One linear layer."""

    name: str
    inputs: int
    outputs: int
    role: Role = Role.OTHER
    block: int | None = None
    """Which of the model's blocks it is in."""
    exact: bool = False
    """Whether it is never quantized: a head, a pooler."""

    @property
    def weights(self) -> int:
        """How many numbers its matrix has."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Profile:
    """The shapes of a model."""

    linears: tuple[LinearShape, ...]
    hidden: int = 0
    """Width of the hidden states; 0 where there is no such thing."""
    heads: int = 0
    """Attention heads of a block."""
    groups: int = 0
    """Groups of heads that can be cut; 0 where none can, and the number of heads where each is a group."""
    ffn: int = 0
    """Neurons of a block's feed-forward network; 0 where none can be cut."""
    tables: tuple[tuple[int, int], ...] = ()
    """Rows and widths of large embedding tables."""
    others: int = 0
    """Numbers in all other tensors: norms, biases, small tables."""

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len({linear.block for linear in self.linears} - {None})

    def uses(self, *, quantized: bool = False, kept: Iterable[str] = ()) -> list[LinearUse]:
        """Its linear layers, alike ones as one entry.

        Args:
            quantized: whether they compute in int8.
            kept: names of those that do not.
        """
        exact = frozenset(kept)
        counts: Counter[tuple[int, int, Kernel]] = Counter()
        for linear in self.linears:
            plain = not quantized or linear.exact or linear.name in exact
            counts[linear.inputs, linear.outputs, "fp32" if plain else "int8"] += 1
        return [LinearUse(*shape, layers) for shape, layers in sorted(counts.items())]

    def stored_bytes(self, bits: int, *, kept: Iterable[str] = ()) -> int:
        """Bytes on disk with weights of so many bits, 32 for a model as it came; tables are int8 below that."""
        exact = frozenset(kept)
        total = self.others * 4
        for linear in self.linears:
            plain = bits == 32 or linear.exact or linear.name in exact
            total += linear.weights * 4 if plain else linear.weights * bits // 8 + linear.outputs * _SCALE_BYTES
        for rows, width in self.tables:
            total += rows * width * 4 if bits == 32 else rows * (width + _SCALE_BYTES)
        return total

    def without(self, target: str, ratio: float, *, round_to: int = 1) -> Profile:
        """With a share of its `ffn` neurons, attention `heads` or `layers` cut away.

        What is left of a width is rounded up to a multiple of `round_to`; one head and one layer always stay.
        """
        if target == "layers":
            return self._with_blocks(max(1, round(self.blocks * (1 - ratio))))
        if target == "heads":
            left = max(1, round(self.groups * (1 - ratio)))
            linears = tuple(_headed(part, left, self.groups) for part in self.linears)
            return replace(self, heads=self.heads * left // self.groups, groups=left, linears=linears)
        width = -(-round(self.ffn * (1 - ratio)) // round_to) * round_to
        linears = tuple(_with_ffn(part, min(width, self.ffn)) for part in self.linears)
        return replace(self, ffn=min(width, self.ffn), linears=linears)

    def student(self, student: Student) -> Profile:
        """What a student of it looks like; its head size stays the same."""
        hidden = student.hidden or self.hidden
        heads = student.heads or max(1, self.heads * hidden // self.hidden)
        ffn = student.ffn or self.ffn
        fewer = self._with_blocks(student.layers or self.blocks)
        linears = tuple(
            _narrowed(_with_ffn(_headed(part, heads, self.heads), ffn), hidden, self.hidden) for part in fewer.linears
        )
        tables = tuple((rows, hidden if width == self.hidden else width) for rows, width in self.tables)
        others = fewer.others * hidden // self.hidden
        sizes = {"hidden": hidden, "heads": heads, "groups": self.groups * heads // self.heads, "ffn": ffn}
        return replace(fewer, linears=linears, tables=tables, others=others, **sizes)

    def _with_blocks(self, count: int) -> Profile:
        linears = tuple(part for part in self.linears if part.block is None or part.block < count)
        return replace(self, linears=linears)


def _with_ffn(linear: LinearShape, width: int) -> LinearShape:
    if linear.role is Role.FFN_IN:
        return replace(linear, outputs=width)
    return replace(linear, inputs=width) if linear.role is Role.FFN_OUT else linear


def _headed(linear: LinearShape, left: int, of: int) -> LinearShape:
    if linear.role in (Role.QUERY, Role.KEY_VALUE):
        return replace(linear, outputs=linear.outputs * left // of)
    return replace(linear, inputs=linear.inputs * left // of) if linear.role is Role.ATTENTION_OUT else linear


def _narrowed(linear: LinearShape, hidden: int, before: int) -> LinearShape:
    """The sides of a layer that read or write hidden states; poolers, square ones outside of blocks, do both."""
    reads = linear.role not in (Role.FFN_OUT, Role.ATTENTION_OUT) and linear.inputs == before
    writes = linear.role in (Role.FFN_OUT, Role.ATTENTION_OUT, Role.OTHER) and linear.outputs == before
    return replace(linear, inputs=hidden if reads else linear.inputs, outputs=hidden if writes else linear.outputs)


def profile_of(module: Any) -> Profile:
    """The shapes of a torch module in full precision; without blocks, heads or ffn where it has none that can be cut.

    Args:
        module: an `nn.Module`.
    """
    from torch import nn

    from headrace.errors import StageError
    from headrace_workers.compression.pruning.layout import layout_of
    from headrace_workers.compression.quantization.quantize import LEFT_ALONE

    try:
        layout = layout_of(module)
    except StageError:  # it has nothing that can be cut, and can be quantized all the same
        layout = None
    roles = {} if layout is None else _roles(layout)
    linears = tuple(
        LinearShape(
            name, part.in_features, part.out_features, *roles.get(name, (Role.OTHER, None)), _any(name, LEFT_ALONE)
        )
        for name, part in module.named_modules()
        if type(part) is nn.Linear
    )
    tables = tuple(
        (part.num_embeddings, part.embedding_dim)
        for part in module.modules()
        if type(part) is nn.Embedding and part.num_embeddings >= _LARGE_TABLE_ROWS
    )
    named = sum(part.weights for part in linears) + sum(rows * width for rows, width in tables)
    others = max(0, sum(parameter.numel() for parameter in module.parameters()) - named)
    return Profile(linears, **_sizes(layout, module), tables=tables, others=others)


def _sizes(layout: Layout | None, module: Any) -> dict[str, int]:
    if layout is None:
        return {}
    ffn = min((part.width for part in layout.ffns), default=0)
    if not layout.attentions:
        return {"ffn": ffn}
    first = layout.attentions[0]
    hidden = module.get_submodule(first.query).in_features
    return {"hidden": hidden, "heads": first.heads, "groups": 0 if layout.why_no_heads else first.kv_heads, "ffn": ffn}


def _roles(layout: Layout) -> dict[str, tuple[Role, int | None]]:
    """What the linear layers of blocks do, and in which block, by name."""
    found: dict[str, tuple[Role, int | None]] = {}
    for number, block in enumerate(layout.blocks):
        at = None if layout.path is None else number
        if block.ffn is not None:
            found |= dict.fromkeys(block.ffn.inputs, (Role.FFN_IN, at)) | {block.ffn.output: (Role.FFN_OUT, at)}
        if block.attention is not None:
            part = block.attention
            found |= {part.query: (Role.QUERY, at), part.key: (Role.KEY_VALUE, at), part.value: (Role.KEY_VALUE, at)}
            found[part.output] = (Role.ATTENTION_OUT, at)
    return found


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
