"""Importance: how much a model would miss a neuron, a head, a channel or a block, measured on data.

Everything here looks and changes nothing. Padding is never counted: what a model computes there means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.errors import StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.pruning.layout import Attention, Ffn
from headrace_workers.compression.subject import Answers, Batch, Subject
from headrace_workers.compression.watching import valid_rows, watched

__all__ = ["Kind", "Part", "block_importance", "channel_importance", "input_norms", "unit_importance"]

Kind = Literal["weight", "activation", "taylor"]
Part = Ffn | Attention
Progress = Callable[[str, float], None]

_BATCH: Final = 16
_WHOLE_ANSWERS: Final = 4
"""Examples whose answers are compared at a time: a language model says a hundred thousand numbers at each token."""


def unit_importance(
    subject: Subject, parts: Sequence[Part], kind: Kind, examples: Examples, *, seed: int, progress: Progress
) -> list[Tensor]:
    """How important each neuron, or each key and value head with its queries, is within its FFN or attention.

    `weight`: the L1 norm of the weights that belong to it; no data is looked at. `activation`: the mean magnitude of
    what it passes on (Minitron, arXiv:2407.14679). `taylor`: the mean over examples of |Σ activation · gradient|, which
    is by how much the loss would change if it were gone, to first order (arXiv:1905.10650, arXiv:1906.10771). The loss
    is the task's, where there are labels or next tokens. Where there are none, being like the model itself would be a
    loss without a gradient; the gradient is then that of a random projection of the answer, drawn for each example,
    whose mean square is how far the whole answer would move.

    Returns:
        For each part, float32 [its units].

    Raises:
        StageError: a part's importance is not finite: its weights or the answers hold NaN or infinity.
    """
    if kind == "weight":
        scores = [_summed(_by_weight(subject.module, part), part) for part in parts]
    elif kind == "activation":
        scores = _by_activation(subject, parts, examples, progress)
    else:
        scores = _by_gradient(subject, parts, examples, seed, progress)
    for part, score in zip(parts, scores, strict=True):
        if not bool(torch.isfinite(score).all()):
            raise StageError(
                f"{part.output}: its importance is not a finite number; are there NaN weights in the model?"
            )
    return scores


def input_norms(subject: Subject, names: Sequence[str], examples: Examples, progress: Progress) -> dict[str, Tensor]:
    """L2 norms, over all tokens, of what comes into linear layers, as Wanda (arXiv:2306.11695) needs them.

    Returns:
        By module name, float32 [in]; nothing for modules that the data never reached.
    """
    squares: dict[str, Tensor] = {}

    def add(name: str, x: Tensor, valid: Tensor) -> None:
        rows = valid_rows(x, valid)
        squares[name] = squares.get(name, torch.zeros(rows.shape[1])) + rows.square().sum(0)

    _observe(subject, names, examples, add, progress)
    return {name: total.sqrt() for name, total in squares.items()}


@torch.no_grad()
def channel_importance(subject: Subject, examples: Examples) -> Tensor:
    """How important each channel of the hidden states is: its mean magnitude, in shares of each layer's, over layers.

    Returns:
        float32 [width of the hidden states].

    Raises:
        StageError: the model shows no hidden states.
    """
    totals: list[Tensor] = []
    for batch in subject.batches(_sorted_by_length(examples), _BATCH):
        hidden = subject.answers(batch, hidden=True).hidden
        sums = [valid_rows(state, batch.valid).abs().sum(0) for state in hidden]
        totals = [total + more for total, more in zip(totals, sums, strict=True)] if totals else sums
    if not totals:
        raise StageError(f"{type(subject.module).__name__} shows no hidden states, so that none can be left out")
    return torch.stack([total / total.mean() for total in totals]).mean(0)


@torch.no_grad()
def block_importance(subject: Subject, names: Sequence[str], examples: Examples, progress: Progress) -> list[float]:
    """How much the answers change when a block is skipped, each by itself.

    Returns:
        For each block the mean over answers of 1 − cosine (embeddings) or of KL(whole ‖ without), in nats.
    """
    changes = torch.zeros(len(names))
    rows = done = 0
    for batch in subject.batches(_sorted_by_length(examples), _WHOLE_ANSWERS):
        whole = subject.answers(batch).rows
        for place, name in enumerate(names):
            with _skipped(subject.module.get_submodule(name)):
                changes[place] += _change(subject, whole, subject.answers(batch).rows).sum()
        rows, done = rows + len(whole), done + len(batch)
        progress("measuring what each block adds", done / len(examples))
    return [float(change) for change in changes / max(1, rows)]


def _by_weight(module: nn.Module, part: Part) -> Tensor:
    """L1 norms by column of `output`, [columns]."""
    columns = _weight(module, part.output).abs().sum(0)
    if isinstance(part, Ffn):
        return columns + sum(_weight(module, name).abs().sum(1) for name in part.inputs)
    shared = torch.stack([_weight(module, name).abs().sum(1) for name in (part.key, part.value)]).sum(0)
    repeats = part.heads // part.kv_heads
    own = _weight(module, part.query).abs().sum(1)
    return columns + own + shared.view(part.kv_heads, 1, -1).expand(-1, repeats, -1).reshape(-1) / repeats


def _weight(module: nn.Module, name: str) -> Tensor:
    weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
    return weight.detach()


def _by_activation(subject: Subject, parts: Sequence[Part], examples: Examples, progress: Progress) -> list[Tensor]:
    totals = {part.output: torch.zeros(part.units * part.unit_width) for part in parts}
    counts = dict.fromkeys(totals, 0)

    def add(name: str, x: Tensor, valid: Tensor) -> None:
        rows = valid_rows(x, valid)
        totals[name] += rows.abs().sum(0)
        counts[name] += len(rows)

    _observe(subject, list(totals), examples, add, progress)
    return [_summed(totals[part.output] / max(1, counts[part.output]), part) for part in parts]


def _by_gradient(
    subject: Subject, parts: Sequence[Part], examples: Examples, seed: int, progress: Progress
) -> list[Tensor]:
    totals = [torch.zeros(part.units) for part in parts]
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for batch in subject.batches(_sorted_by_length(examples), _BATCH):
        change = _changes(subject, parts, batch, generator)
        for total, part in zip(totals, parts, strict=True):
            if part.output in change:
                total += change[part.output].view(len(batch), part.units, -1).sum(2).abs().sum(0)
        done += len(batch)
        progress("measuring importance", done / len(examples))
    return [total / max(1, len(examples)) for total in totals]


def _changes(subject: Subject, parts: Sequence[Part], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """By how much each activation of each part that ran moves the loss, by the part's output."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        seen[name] = x if x.requires_grad else x.requires_grad_(True)

    with torch.enable_grad(), watched(subject.module, [part.output for part in parts], keep):
        loss = _loss(subject, subject.answers(batch), generator)
        gradients = torch.autograd.grad(loss, list(seen.values()), allow_unused=True)
    return {name: _moved(x, slope) for (name, x), slope in zip(seen.items(), gradients, strict=True)}


def _moved(x: Tensor, slope: Tensor | None) -> Tensor:
    """Activation · gradient, summed over an example's positions: [examples, columns]."""
    if slope is None:
        return torch.zeros(x.shape[0], x.shape[-1])
    return (x.detach() * slope).reshape(x.shape[0], -1, x.shape[-1]).sum(1)


def _loss(subject: Subject, answers: Answers, generator: torch.Generator) -> Tensor:
    rows = answers.rows
    if answers.targets is not None and rows.shape[-1] > 1:
        return functional.cross_entropy(rows, answers.targets, reduction="sum")
    said = (
        functional.normalize(rows, dim=-1)
        if subject.task == "embedding" or rows.shape[-1] == 1
        else rows.log_softmax(-1)
    )
    signs = torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1
    return (said * signs).sum()


def _change(subject: Subject, whole: Tensor, without: Tensor) -> Tensor:
    if subject.task == "embedding":
        return 1 - functional.cosine_similarity(whole, without, dim=-1)
    if whole.shape[-1] == 1:
        return (whole - without).square().sum(-1)
    return functional.kl_div(without.log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _summed(by_column: Tensor, part: Part) -> Tensor:
    return by_column.view(part.units, -1).sum(1)


def _sorted_by_length(examples: Examples) -> Examples:
    """Texts that are about as long as each other together, so that there is little padding to compute."""
    if not isinstance(next(iter(examples), None), str):
        return examples
    return examples.take(sorted(range(len(examples)), key=lambda place: len(examples.inputs[place])))


@torch.no_grad()
def _observe(
    subject: Subject,
    names: Sequence[str],
    examples: Examples,
    add: Callable[[str, Tensor, Tensor], None],
    progress: Progress,
) -> None:
    done = 0
    valid = torch.empty(0)
    with watched(subject.module, names, lambda name, x: add(name, x, valid)):
        for batch in subject.batches(_sorted_by_length(examples), _BATCH):
            valid = batch.valid
            subject.answers(batch)
            done += len(batch)
            progress("measuring importance", done / len(examples))


@contextmanager
def _skipped(block: nn.Module) -> Iterator[None]:
    """Let a block pass on what it was given."""

    def hook(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        given = arguments[0] if arguments else named["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
