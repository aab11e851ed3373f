"""Structured pruning: neurons, heads and blocks cut out of a model, which is smaller and faster on any kernel for it.

What goes is sliced out of the tensors; no zeros are left behind. That is only right where a unit's way through the
model is what its layout says, so every cut is proven on a few examples: the model answers as it did with those units
silenced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.errors import StageError
from headrace_workers.compression.pruning.importance import Part, block_importance, unit_importance
from headrace_workers.compression.pruning.layout import Attention, Ffn, Layout, layout_of
from headrace_workers.compression.recipe import PruneStructured
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Batch, Subject
from headrace_workers.models.structure import HEAD_ATTRIBUTES, WIDTH_ATTRIBUTES, drop_blocks

__all__ = ["best", "chosen_units", "cut_blocks", "cut_units", "prune_structured"]

_EXAMPLES: Final = 256
"""Training examples that importance is measured on."""
_BLOCK_EXAMPLES: Final = 32
"""Validation examples that blocks are judged by: each runs once for every block."""
_PROOF_EXAMPLES: Final = 4
_TOLERANCE: Final = 1e-3
"""Relative distance allowed between a cut model and the silenced one. Rounding gives 1e-6, a wrong cut about 1."""
_SLACK: Final = 1e-9
"""Shares are floats: 0.3 of 10 is 3 and not a little less."""
_UNIT: Final = {"ffn": "neurons", "heads": "key and value heads", "layers": "layers"}


def prune_structured(subject: Subject, stage: PruneStructured, context: StageContext) -> Subject:
    """Cut the least important neurons, heads or blocks.

    Blocks are always judged by how much the answers to validation examples change without them (see
    `block_importance`), each by itself; `importance` and `scope` say nothing there. For neurons and heads `threshold`
    is a share of the mean importance of their own layer, whatever the scope.

    Args:
        subject: changed in place and returned.
        stage: what to cut, and how much.
        context: its data decides what is important.

    Raises:
        StageError: the model has nothing of the kind, or would lose too much of it; the message says how much it can.
    """
    subject.module.eval()
    layout = layout_of(subject.module)
    before = _parameters(subject.module)
    cut = _prune_blocks if stage.target == "layers" else _prune_units
    what = cut(subject, layout, stage, context)
    after = _parameters(subject.module)
    gain = f"{before:,} parameters became {after:,}" if after < before else "nothing was gained"
    context.note(f"{what}: {gain}")
    return subject


def cut_units(subject: Subject, kept: Mapping[Part, Tensor]) -> None:
    """Slice neurons or heads out of a model, and write down how its modules' attributes changed.

    Args:
        subject: changed in place.
        kept: for parts of its layout, which units stay: int64, ascending.

    Raises:
        StageError: none would be left somewhere.
    """
    attributes = {name: dict(values) for name, values in subject.structure.attributes.items()}
    for part, units in kept.items():
        if len(units) == 0:
            raise StageError(f"{part.output} would be left without a single unit; keep at least one")
        if isinstance(part, Ffn):
            _cut_ffn(subject.module, part, units)
        else:
            _cut_heads(subject.module, part, units)
            attributes[part.module] = attributes.get(part.module, {}) | _set_heads(subject.module, part, len(units))
    subject.structure = subject.structure.model_copy(update={"attributes": attributes})


def cut_blocks(subject: Subject, path: str, kept: Sequence[int]) -> None:
    """Drop blocks, and write down which of the blocks that the configuration makes are left.

    Args:
        subject: changed in place.
        path: name of the list of blocks.
        kept: places of those that stay, ascending.

    Raises:
        StageError: none would be left.
    """
    if not kept:
        raise StageError(f"{path} would be left without a single block; keep at least one")
    blocks = subject.module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    before = subject.structure.layers.get(path, list(range(len(blocks))))
    drop_blocks(subject.module, path, kept)
    moved = {str(old): str(new) for new, old in enumerate(kept)}
    structure = subject.structure
    named = ((_moved(name, path, moved), values) for name, values in structure.attributes.items())
    pruned = (_moved(name, path, moved) for name in structure.pruned)
    subject.structure = structure.model_copy(
        update={
            "layers": {**structure.layers, path: [before[place] for place in kept]},
            "attributes": {name: values for name, values in named if name is not None},
            "pruned": [name for name in pruned if name is not None],
        }
    )


def chosen_units(scores: Sequence[Tensor], stage: PruneStructured) -> list[Tensor]:
    """Which units of each part stay.

    Args:
        scores: for each part, float32 [its units]: the larger, the more important.
        stage: how many go, and where.

    Returns:
        For each part, int64 places, ascending. Where a part must keep more than its share, `min_keep` says so, or
        `round_to`, which rounds FFN widths up and never to more than there were.

    Raises:
        StageError: a ratio leaves less than `min_keep`.
    """
    least = [_least(len(score), stage.min_keep) for score in scores]
    if stage.threshold is not None:
        limit = stage.threshold
        counts = [int((score >= limit * score.mean()).sum()) for score in scores]
    else:
        assert stage.ratio is not None
        counts = _counts(scores, least, stage, stage.ratio)
    multiple = stage.round_to if stage.target == "ffn" else 1
    rounded = [_rounded_up(max(count, low), multiple) for count, low in zip(counts, least, strict=True)]
    return [best(score, count) for score, count in zip(scores, rounded, strict=True)]


def _counts(scores: Sequence[Tensor], least: Sequence[int], stage: PruneStructured, ratio: float) -> list[int]:
    for score, low in zip(scores, least, strict=True):
        _check_ratio(len(score), low, ratio, stage)
    if stage.scope == "per_layer":
        return [_share(len(score), 1 - ratio) for score in scores]
    return _counts_over_all(scores, least, stage, ratio)


def _counts_over_all(scores: Sequence[Tensor], least: Sequence[int], stage: PruneStructured, ratio: float) -> list[int]:
    """The least important go, wherever they are; those that a part must keep are not up for it.

    Taylor's importance is a change of the loss, whichever layer it comes from. Weights and activations have a scale of
    their own in each layer and are compared in shares of its mean.
    """
    whole = sum(len(score) for score in scores)
    common = [score if stage.importance == "taylor" else score / score.mean().clamp_min(_SLACK) for score in scores]
    spare = [score.sort(descending=True).values[low:] for score, low in zip(common, least, strict=True)]
    left = _share(whole, 1 - ratio) - sum(least)
    of = torch.cat([torch.full((len(part),), place) for place, part in enumerate(spare)])
    stay = of[torch.cat(spare).argsort(descending=True, stable=True)[:left]]
    return [low + int((stay == place).sum()) for place, low in enumerate(least)]


def _check_ratio(of: int, least: int, ratio: float, stage: PruneStructured) -> None:
    if of * ratio > of - least + _SLACK:
        most = math.floor((of - least) / of * 1000) / 1000
        raise StageError(
            f"ratio {ratio} would leave fewer than {least} of {of} {_UNIT[stage.target]}, which min_keep "
            f"{stage.min_keep} asks for; the largest possible is {most}"
        )


def _least(of: int, min_keep: float) -> int:
    return max(1, _share(of, min_keep))


def _share(of: int, share: float) -> int:
    return math.ceil(of * share - _SLACK)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def best(score: Tensor, count: int) -> Tensor:
    """Places of the `count` largest of float32 [n]: int64 [count], ascending."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def _prune_units(subject: Subject, layout: Layout, stage: PruneStructured, context: StageContext) -> str:
    parts = _parts(subject, layout, stage)
    examples = context.data.train.sample(_EXAMPLES, seed=context.seed)
    scores = unit_importance(subject, parts, stage.importance, examples, seed=context.seed, progress=context.progress)
    kept = {
        part: units for part, units in zip(parts, chosen_units(scores, stage), strict=True) if len(units) < part.units
    }
    batch = next(subject.batches(examples.take(range(min(_PROOF_EXAMPLES, len(examples)))), _PROOF_EXAMPLES))
    with torch.no_grad():
        expected = _silenced_answers(subject, kept, batch)
        cut_units(subject, kept)
        _prove(subject.answers(batch).rows, expected, stage)
    widths = [len(kept[part]) if part in kept else part.units for part in parts]
    return f"{_UNIT[stage.target]} left in each layer, of {parts[0].units}: {', '.join(map(str, widths))}"


def _parts(subject: Subject, layout: Layout, stage: PruneStructured) -> Sequence[Part]:
    if stage.target == "heads" and layout.why_no_heads:
        raise StageError(f"heads of {type(subject.module).__name__} cannot be cut: {layout.why_no_heads}")
    parts: Sequence[Part] = layout.ffns if stage.target == "ffn" else layout.attentions
    if not parts:
        raise StageError(f"{type(subject.module).__name__} has no {_UNIT[stage.target]} that are known here")
    return parts


def _prune_blocks(subject: Subject, layout: Layout, stage: PruneStructured, context: StageContext) -> str:
    if layout.path is None:
        raise StageError(f"{type(subject.module).__name__} has no list of blocks that layers could be cut from")
    count = len(layout.blocks)
    least = _least(count, stage.min_keep)
    if stage.ratio is not None:
        _check_ratio(count, least, stage.ratio, stage)
    examples = context.data.validation.sample(_BLOCK_EXAMPLES, seed=context.seed)
    names = [block.name for block in layout.blocks]
    changes = torch.tensor(block_importance(subject, names, examples, context.progress))
    if not bool(torch.isfinite(changes).all()):
        raise StageError("the model's answers are not finite numbers; are there NaN weights in it?")
    if stage.ratio is not None:
        left = _share(count, 1 - stage.ratio)
    else:
        left = int((changes >= (stage.threshold or 0) * changes.mean()).sum())
    kept = best(changes, max(least, left)).tolist()
    if len(kept) < count:
        cut_blocks(subject, layout.path, kept)
    return f"layers left: {', '.join(map(str, kept))} of 0 to {count - 1}"


def _cut_ffn(module: nn.Module, part: Ffn, kept: Tensor) -> None:
    for name in part.inputs:
        _slice(module, name, rows=kept)
    _slice(module, part.output, columns=kept)


def _cut_heads(module: nn.Module, part: Attention, kept: Tensor) -> None:
    with_queries = _columns(kept, part.unit_width)
    _slice(module, part.query, rows=with_queries)
    _slice(module, part.key, rows=_columns(kept, part.head_size))
    _slice(module, part.value, rows=_columns(kept, part.head_size))
    _slice(module, part.output, columns=with_queries)


def _columns(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width)).reshape(-1)


def _slice(module: nn.Module, name: str, *, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    old = module.get_submodule(name)
    assert isinstance(old, nn.Linear)
    weight, bias = old.weight.detach(), None if old.bias is None else old.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.contiguous(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=old.bias.requires_grad)
    module.set_submodule(name, new.train(old.training))


def _set_heads(module: nn.Module, part: Attention, kv_heads: int) -> dict[str, int]:
    """Set what an attention module knows of its heads; which attributes those are differs between architectures."""
    heads = part.heads // part.kv_heads * kv_heads
    values = dict.fromkeys(HEAD_ATTRIBUTES, heads) | dict.fromkeys(WIDTH_ATTRIBUTES, heads * part.head_size)
    values["num_key_value_heads"] = kv_heads
    attention: Any = module.get_submodule(part.module)
    present = {name: value for name, value in values.items() if type(vars(attention).get(name)) is int}
    for name, value in present.items():
        setattr(attention, name, value)
    return present


def _moved(name: str, path: str, places: Mapping[str, str]) -> str | None:
    """A module's name after blocks were dropped; None if it went with them."""
    if not name.startswith(f"{path}."):
        return name
    block, dot, rest = name.removeprefix(f"{path}.").partition(".")
    return f"{path}.{places[block]}{dot}{rest}" if block in places else None


def _silenced_answers(subject: Subject, kept: Mapping[Part, Tensor], batch: Batch) -> Tensor:
    with _silenced(subject.module, kept):
        return subject.answers(batch).rows


@contextmanager
def _silenced(module: nn.Module, kept: Mapping[Part, Tensor]) -> Iterator[None]:
    """Let nothing through but the units that are kept."""

    def silencing(part: Part, units: Tensor) -> Any:
        mask = torch.zeros(part.units * part.unit_width)
        mask[_columns(units, part.unit_width)] = 1
        return lambda _module, arguments: (arguments[0] * mask, *arguments[1:])

    handles = [
        module.get_submodule(part.output).register_forward_pre_hook(silencing(part, units))
        for part, units in kept.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prove(rows: Tensor, expected: Tensor, stage: PruneStructured) -> None:
    distance = float((rows - expected).norm() / expected.norm().clamp_min(1e-12))
    if not distance < _TOLERANCE:
        raise StageError(
            f"cut, the model does not answer as with the same {_UNIT[stage.target]} silenced (they differ by "
            f"{distance:.2g}): something else in it uses them"
        )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
