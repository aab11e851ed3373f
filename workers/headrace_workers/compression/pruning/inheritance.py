"""Inheritance: what a narrower student has of its teacher's tensors.

Hidden states lose the same channels everywhere, because all blocks add to them; neurons and heads are each block's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.pruning.importance import Part, channel_importance, unit_importance
from headrace_workers.compression.pruning.layout import Attention, Ffn, Layout
from headrace_workers.compression.pruning.structured import best
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import TextSubject

__all__ = ["EXAMPLES", "Shape", "inherit"]

EXAMPLES: Final = 128
"""Texts whose activations decide which channels, neurons and heads stay."""


@dataclass(frozen=True)
class Shape:
    """What a student is like."""

    blocks: tuple[int, ...]
    """Places of the teacher's blocks that it has."""
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_size: int
    rotary: bool
    """Whether heads are rotated by their positions, and their size a number of its own in the configuration."""

    def changes(self, part: Part) -> bool:
        """Whether an FFN or an attention of the teacher's becomes smaller."""
        if isinstance(part, Ffn):
            return part.width != self.ffn
        return (part.kv_heads, part.head_size) != (self.kv_heads, self.head_size)


@torch.no_grad()
def inherit(module: nn.Module, teacher: TextSubject, layout: Layout, shape: Shape, context: StageContext) -> None:
    """Give a student its teacher's most important channels, neurons and heads.

    Args:
        module: the student's, of any weights; changed in place.
        teacher: the same architecture, larger.
        layout: the teacher's.
        shape: the student's.
        context: its training data says what is important: mean magnitudes, as in Minitron (arXiv:2407.14679).

    Raises:
        StageError: teacher and student do not have the same tensors.
    """
    wider, student = teacher.module.state_dict(), module.state_dict()
    sources = _sources(wider, layout, shape)
    if odd := sorted(student.keys() ^ sources.keys()):
        raise StageError(
            f"{odd[0]} is not in both teacher and student, in that shape; choose another, or initial: random"
        )
    kept = _kept(teacher, layout, shape, context)
    for name, tensor in student.items():
        tensor.copy_(kept.of(sources[name], wider[sources[name]], tensor.shape))


@dataclass
class _Kept:
    """Which of the teacher's rows and columns the student has, by tensor name and dimension."""

    hidden: Tensor
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def of(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """The student's part of a teacher's tensor."""
        for axis, wanted in enumerate(shape):
            kept = self.axes.get((name, axis), self.hidden if tensor.shape[axis] != wanted else None)
            if kept is not None:
                tensor = tensor.index_select(axis, kept)
        if tensor.shape != shape:
            raise StageError(f"{name} is {list(tensor.shape)} when cut and {list(shape)} in the student")
        return tensor


def _sources(teacher: Iterable[str], layout: Layout, shape: Shape) -> dict[str, str]:
    """The student's tensors, and which of the teacher's they are made of."""
    places = {str(block): str(place) for place, block in enumerate(shape.blocks)}
    found = {}
    for name in teacher:
        block, dot, rest = name.removeprefix(f"{layout.path}.").partition(".")
        if not name.startswith(f"{layout.path}."):
            found[name] = name
        elif block in places:
            found[f"{layout.path}.{places[block]}{dot}{rest}"] = name
    return found


def _kept(subject: TextSubject, layout: Layout, shape: Shape, context: StageContext) -> _Kept:
    examples = context.data.train.sample(EXAMPLES, seed=context.seed)
    hidden: int = subject.config.hidden_size
    channels = torch.ones(hidden) if shape.hidden == hidden else channel_importance(subject, examples)
    kept = _Kept(best(channels, shape.hidden))
    blocks = [layout.blocks[place] for place in shape.blocks]
    parts = [
        part for block in blocks for part in (block.ffn, block.attention) if part is not None and shape.changes(part)
    ]
    scores = unit_importance(subject, parts, "activation", examples, seed=context.seed, progress=context.progress)
    for part, score in zip(parts, scores, strict=True):
        if isinstance(part, Ffn):
            _keep_neurons(kept, part, best(score, shape.ffn))
        else:
            _keep_heads(kept, part, best(score, shape.kv_heads), _strongest(subject.module, part, shape.head_size))
    return kept


def _keep_neurons(kept: _Kept, part: Ffn, neurons: Tensor) -> None:
    for name in part.inputs:
        _keep_rows(kept, name, neurons)
    kept.axes[f"{part.output}.weight", 1] = neurons


def _keep_heads(kept: _Kept, part: Attention, heads: Tensor, channels: tuple[Tensor, Tensor]) -> None:
    """Keep key and value heads with their queries, and of each head the given channels.

    Args:
        kept: takes what is kept.
        part: the teacher's attention.
        heads: key and value heads.
        channels: of queries and keys, and of values, [key and value heads of the teacher, channels that stay].
    """
    group = part.heads // part.kv_heads
    queries = (heads[:, None] * group + torch.arange(group)).reshape(-1)
    matched, passed_on = channels
    _keep_rows(kept, part.query, _columns(queries, part.head_size, matched[heads].repeat_interleave(group, 0)))
    _keep_rows(kept, part.key, _columns(heads, part.head_size, matched[heads]))
    _keep_rows(kept, part.value, _columns(heads, part.head_size, passed_on[heads]))
    kept.axes[f"{part.output}.weight", 1] = _columns(
        queries, part.head_size, passed_on[heads].repeat_interleave(group, 0)
    )


def _keep_rows(kept: _Kept, name: str, rows: Tensor) -> None:
    kept.axes[f"{name}.weight", 0] = kept.axes[f"{name}.bias", 0] = rows


def _columns(heads: Tensor, size: int, within: Tensor) -> Tensor:
    """Places of channels among all heads', of the heads [n] and within each [n, channels]."""
    return (heads[:, None] * size + within).reshape(-1)


def _strongest(module: nn.Module, part: Attention, size: int) -> tuple[Tensor, Tensor]:
    """Channels that heads keep where they become smaller, by weight: of queries and keys, and of values.

    A query's channel meets the key's of the same place only, so that the two stay together. Heads that share keys never
    become smaller (see `_heads`).
    """
    if size == part.head_size:
        every = torch.arange(size).expand(part.kv_heads, -1)
        return every, every

    def norms(name: str) -> Tensor:
        weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
        return weight.detach().abs().sum(1).view(part.kv_heads, part.head_size)

    matched, passed_on = norms(part.query) * norms(part.key), norms(part.value)
    return _strongest_of_each(matched, size), _strongest_of_each(passed_on, size)


def _strongest_of_each(scores: Tensor, size: int) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)[:, :size].sort(1).values
