"""Narrow: a student made of its teacher, with fewer blocks, channels, neurons or heads, and the teacher's best of them.

Unlike a pruned model a student is one that a configuration describes: every block has the same widths. Its hidden
states are the teacher's, most important channels first to stay; each block keeps its own most important neurons and
heads; blocks are taken evenly spaced, as DistilBERT's were (arXiv:1910.01108).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from headrace.errors import StageError
from headrace_workers.compression.pruning.importance import unit_importance
from headrace_workers.compression.pruning.inheritance import EXAMPLES, Shape, inherit
from headrace_workers.compression.pruning.layout import Attention, Layout, layout_of
from headrace_workers.compression.pruning.structured import best, cut_blocks, cut_units
from headrace_workers.compression.recipe import Student
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.models.pooling import read_pooling

__all__ = ["evenly_spaced", "narrowed", "student_of"]

_FFN_FIELDS: Final = ("intermediate_size", "hidden_dim")
"""Where configurations keep the width of FFNs."""


def student_of(subject: Subject, student: Student, context: StageContext) -> Subject:
    """The student that a recipe describes, of the subject as its teacher. The subject stays as it is.

    Args:
        subject: not pruned.
        student: without `model`; `initial` says whether weights are the teacher's or new ones, drawn with the
            context's seed.
        context: its training data is looked at.

    Raises:
        StageError: such a student cannot be made of this teacher; the message says what could be.
    """
    if student.model is not None:
        raise StageError(f"a student that is another model ({student.model}) is loaded, not cut out of its teacher")
    shape = (student.layers, student.hidden, student.ffn, student.heads)
    fresh = student.initial == "random"
    if not isinstance(subject, TextSubject):
        return _of_module(subject, student, context)
    if not fresh and all(part is None for part in shape):
        return subject.clone()
    layers = None if student.layers is None else evenly_spaced(len(layout_of(subject.module).blocks), student.layers)
    hidden, ffn, heads = shape[1:]
    return narrowed(subject, context, layers=layers, hidden=hidden, ffn=ffn, heads=heads, fresh=fresh)


def narrowed(
    subject: TextSubject,
    context: StageContext,
    *,
    layers: Sequence[int] | None = None,
    hidden: int | None = None,
    ffn: int | None = None,
    heads: int | None = None,
    fresh: bool = False,
) -> TextSubject:
    """A subject with a smaller model; what is None stays as it is.

    Heads keep their size if that is possible: a narrower model has fewer of them. Only where it is not, or where
    `heads` asks for as many as do not fit, each head gives up some of its own channels.

    Args:
        subject: a model of transformers, not pruned.
        context: its training data is looked at.
        layers: places of the blocks that stay.
        hidden: width of the hidden states.
        ffn: neurons of each FFN.
        heads: attention heads.
        fresh: new weights instead of the teacher's.

    Raises:
        StageError: it cannot be; the message says what could.
    """
    layout = layout_of(subject.module)
    _check_whole(subject, layout)
    shape = _shape(subject, layout, layers, hidden, ffn, heads)
    if layout.why_no_heads and not fresh and shape.changes(layout.attentions[0]):
        raise StageError(f"a student with other heads cannot be cut out of this teacher: {layout.why_no_heads}")
    config = _config(subject.config, shape)
    module = _made(subject, config, context.seed)
    if not fresh:
        inherit(module, subject, layout, shape, context)
    return subject.with_module(module, config)


def evenly_spaced(of: int, count: int) -> list[int]:
    """`count` of the numbers below `of`, the first and the last among them.

    Raises:
        StageError: there are not so many.
    """
    if count > of:
        raise StageError(f"a student of {count} layers cannot be made of a teacher with {of}; ask for {of} or fewer")
    if count == 1:
        return [0]
    return [round(place * (of - 1) / (count - 1)) for place in range(count)]


def _of_module(subject: Subject, student: Student, context: StageContext) -> Subject:
    """A student of a module that no configuration describes: pruned at once to the widths that are asked for."""
    if student.hidden is not None or student.heads is not None:
        raise StageError(f"of {type(subject.module).__name__} only ffn and layers can be other than the teacher's")
    twin = subject.clone()
    if student.layers is not None:
        layout = layout_of(twin.module)
        if layout.path is None:
            raise StageError(f"{type(twin.module).__name__} has no list of blocks that layers could be cut from")
        cut_blocks(twin, layout.path, evenly_spaced(len(layout.blocks), student.layers))
    if student.ffn is not None:
        _narrow_ffns(twin, student.ffn, context)
    if student.initial == "random":
        _draw(twin.module, context.seed)
    return twin


def _narrow_ffns(subject: Subject, width: int, context: StageContext) -> None:
    wide = [ffn for ffn in layout_of(subject.module).ffns if ffn.width > width]
    examples = context.data.train.sample(EXAMPLES, seed=context.seed)
    scores = unit_importance(subject, wide, "activation", examples, seed=context.seed, progress=context.progress)
    cut_units(subject, {ffn: best(score, width) for ffn, score in zip(wide, scores, strict=True)})


def _draw(module: nn.Module, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()


def _check_whole(subject: TextSubject, layout: Layout) -> None:
    alike = [(block.ffn and block.ffn.width, block.attention and block.attention.heads) for block in layout.blocks]
    if subject.structure.layers or len(set(alike)) > 1:
        raise StageError("the model is pruned already, and its blocks are not alike any more; make the student first")
    if None in alike[0] or layout.path is None:
        raise StageError(f"{type(subject.module).__name__} has blocks without an FFN or attention that is known here")


def _shape(
    subject: TextSubject,
    layout: Layout,
    layers: Sequence[int] | None,
    hidden: int | None,
    ffn: int | None,
    heads: int | None,
) -> Shape:
    attention, config = layout.attentions[0], subject.config
    width = _checked("hidden", hidden, config.hidden_size)
    rotary = hasattr(subject.module.get_submodule(attention.module), "head_dim")
    count, kv_count, size = _heads(attention, config, width, heads, rotary=rotary)
    if width != config.hidden_size and _has_dense_pooling(subject):
        raise StageError("the model's own dense layer after pooling takes the teacher's width; leave hidden as it is")
    blocks = range(len(layout.blocks)) if layers is None else layers
    return Shape(tuple(blocks), width, _checked("ffn", ffn, layout.ffns[0].width), count, kv_count, size, rotary)


def _has_dense_pooling(subject: TextSubject) -> bool:
    return subject.task == "embedding" and bool(read_pooling(subject.source).dense)


def _checked(name: str, wanted: int | None, most: int) -> int:
    if wanted is not None and wanted > most:
        raise StageError(
            f"a student with {name} {wanted} cannot be cut out of a teacher with {most}; ask for at most {most}"
        )
    return most if wanted is None else wanted


def _heads(attention: Attention, config: Any, hidden: int, heads: int | None, *, rotary: bool) -> tuple[int, int, int]:
    """Heads, key and value heads, and their size."""
    size, group = attention.head_size, attention.heads // attention.kv_heads
    if rotary:  # a rotated head cannot lose single channels; its size is a number of its own in the configuration
        fitting = max(group, hidden * attention.heads // config.hidden_size // group * group)
        count = fitting if heads is None else _checked("heads", heads, attention.heads)
        if count % group:
            raise StageError(f"{group} heads share a key and value head; {count} heads cannot, ask for a multiple")
        return count, count // group, size
    if heads is None:
        able = [count for count in range(1, attention.heads + 1) if hidden % count == 0 and hidden // count <= size]
        if not able:
            raise StageError(
                f"hidden {hidden} cannot be shared among {attention.heads} heads or fewer of at most {size}"
            )
        return able[0], able[0], hidden // able[0]
    count = _checked("heads", heads, attention.heads)
    if hidden % count or hidden // count > size:
        raise StageError(f"hidden {hidden} in {count} heads is not at most {size} channels each, as the teacher's are")
    return count, count, hidden // count


def _config(original: Any, shape: Shape) -> Any:
    config = copy.deepcopy(original)
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(shape.blocks)
    config.hidden_size, config.num_attention_heads = shape.hidden, shape.heads
    if types is not None:
        config.layer_types = [types[place] for place in shape.blocks]
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = shape.kv_heads
    if shape.rotary:
        config.head_dim = shape.head_size
    for name in _FFN_FIELDS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, shape.ffn)
    return config


def _made(subject: TextSubject, config: Any, seed: int) -> nn.Module:
    """The student with weights drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module: nn.Module = type(subject.module)(config)
        except (ValueError, RuntimeError, TypeError) as error:
            raise StageError(f"{type(subject.module).__name__} cannot be made in that shape: {error}") from error
    if "pooler" in subject.module._modules and subject.module._modules["pooler"] is None:
        module._modules["pooler"] = None
    return module.eval().requires_grad_(False)
