"""Unstructured pruning: single weights set to zero, for good.

Where a weight is zero, its file has one bit; a dense kernel multiplies by it like by any other number. What masks there
are is `torch.nn.utils.prune`'s work. They are made permanent at once, because a masked module holds its weights twice
and cannot be copied; training that follows asks `masks_of` and `hold_zeros` to keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from headrace.errors import StageError
from headrace_workers.compression.pruning.importance import input_norms
from headrace_workers.compression.recipe import Prune
from headrace_workers.compression.stage import StageContext
from headrace_workers.compression.subject import Subject

__all__ = ["best_of_each", "hold_zeros", "masks_of", "prune", "wanda_mask"]

_EXAMPLES: Final = 128
"""Training examples that Wanda's input norms are taken over, as many as in its paper."""

Module = nn.Linear | nn.Embedding


def prune(subject: Subject, stage: Prune, context: StageContext) -> Subject:
    """Set the least important weights of linear layers, and of lookup tables if they are asked for, to zero.

    `l1`: the smallest of each matrix; `global_l1`: the smallest of all matrices together; `threshold`: those smaller
    than a number; `random`: any; `wanda`: of each output's weights those with the smallest |weight| · ‖input‖
    (arXiv:2306.11695). A table has no input to take a norm of, and is pruned by its weights alone. A `pattern` chooses
    by the same scores among each few in a row.

    Args:
        subject: changed in place and returned.
        stage: what to prune, and how much.
        context: its training data is what Wanda looks at.

    Raises:
        StageError: there is nothing to prune, a weight is not a number, or a pattern does not fit a layer's width.
    """
    modules = _modules(subject.module, stage)
    _check_finite(modules)
    before = _zeros(modules)
    if stage.pattern is None and stage.method in ("l1", "global_l1", "random"):
        _prune_by_torch(modules, stage, context.seed)
    else:
        for name, mask in _masks(subject, modules, stage, context).items():
            _check_some_left(name, modules[name], mask)
            torch_prune.custom_from_mask(modules[name], "weight", mask)  # type: ignore[no-untyped-call]
    for module in modules.values():
        _make_permanent(module)
    pruned = sorted({*subject.structure.pruned, *modules})
    subject.structure = subject.structure.model_copy(update={"pruned": pruned})
    context.note(_summary(subject.module, modules, _zeros(modules) - before))
    return subject


def masks_of(subject: Subject) -> dict[str, Tensor]:
    """Which weights of a pruned model are left.

    Returns:
        By the name of the module, bool of its weight's shape; nothing for a model that was never pruned.
    """
    return {name: _weight(subject.module, name).detach() != 0 for name in subject.structure.pruned}


@contextmanager
def hold_zeros(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Keep zeros what they are while a module is trained.

    Their gradients are zero, so that neither a step nor its momentum moves them, and weight decay does not move a zero.

    Args:
        module: whose weights to hold. Those that are to be trained must require gradients already.
        masks: from `masks_of`.
    """
    held = [(_weight(module, name), mask) for name, mask in masks.items()]
    trained = [(weight, mask) for weight, mask in held if weight.requires_grad]
    handles = [weight.register_hook(_masking(mask)) for weight, mask in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for weight, mask in held:
                weight.masked_fill_(~mask, 0.0)


def wanda_mask(weight: Tensor, norms: Tensor, amount: float) -> Tensor:
    """Which weights Wanda leaves: of each output all but the given share, smallest |weight| · ‖input‖ first.

    Args:
        weight: float32 [out, in].
        norms: float32 [in].
        amount: share of each row that goes.

    Returns:
        bool [out, in]
    """
    scores = weight.abs() * norms
    gone = scores.argsort(dim=1, stable=True)[:, : round(amount * weight.shape[1])]
    return torch.ones_like(weight, dtype=torch.bool).scatter_(1, gone, False)


def best_of_each(scores: Tensor, keep: int, of: int) -> Tensor:
    """An n:m mask: the `keep` largest of each `of` in a row.

    Args:
        scores: [rows, columns], columns a multiple of `of`.
        keep: how many stay.
        of: of how many.

    Returns:
        bool [rows, columns]
    """
    groups = scores.reshape(scores.shape[0], -1, of)
    best = groups.argsort(dim=2, descending=True, stable=True)[..., :keep]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True).reshape(scores.shape)


def _modules(module: nn.Module, stage: Prune) -> dict[str, Module]:
    """What is pruned, by name; a weight that two modules share only once, with the one that comes first."""
    kinds = (nn.Linear, nn.Embedding) if stage.embeddings else (nn.Linear,)
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    found: dict[str, Module] = {}
    seen = set() if stage.embeddings else tables  # a head that shares its weight with a table is that table
    for name, part in module.named_modules():
        if isinstance(part, kinds) and id(part.weight) not in seen and not _matches(name, stage.left_alone):
            found[name] = part
            seen.add(id(part.weight))
    if not found:
        raise StageError(f"{type(module).__name__} has no weights to prune: no linear layer that is not left alone")
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_finite(modules: Mapping[str, Module]) -> None:
    for name, module in modules.items():
        if not bool(torch.isfinite(module.weight).all()):
            raise StageError(f"{name}.weight holds numbers that are not finite, which cannot be ranked")


def _check_some_left(name: str, module: Module, mask: Tensor) -> None:
    if not bool(mask.any()):
        largest = float(module.weight.abs().max())
        raise StageError(f"{name} would lose all of its weights, the largest of which is {largest:.3g}")


def _prune_by_torch(modules: Mapping[str, Module], stage: Prune, seed: int) -> None:
    if stage.method == "global_l1":
        pairs = [(module, "weight") for module in modules.values()]
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=stage.amount)
        return
    method = torch_prune.l1_unstructured if stage.method == "l1" else torch_prune.random_unstructured
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules.values():
            method(module, "weight", amount=stage.amount)  # type: ignore[no-untyped-call]


def _masks(subject: Subject, modules: Mapping[str, Module], stage: Prune, context: StageContext) -> dict[str, Tensor]:
    if stage.threshold is not None:
        return {name: module.weight.abs() >= stage.threshold for name, module in modules.items()}
    norms = _norms(subject, modules, context) if stage.method == "wanda" else {}
    generator = torch.Generator().manual_seed(context.seed)
    masks = {}
    for name, module in modules.items():
        weight = module.weight.detach()
        scale = norms.get(name, torch.ones(weight.shape[1]))
        if stage.pattern is None:
            masks[name] = wanda_mask(weight, scale, stage.amount or 0.0)
            continue
        scores = torch.rand(weight.shape, generator=generator) if stage.method == "random" else weight.abs() * scale
        masks[name] = best_of_each(scores, *_pattern(stage.pattern, name, weight.shape[1]))
    return masks


def _norms(subject: Subject, modules: Mapping[str, Module], context: StageContext) -> dict[str, Tensor]:
    subject.module.eval()
    examples = context.data.train.sample(_EXAMPLES, seed=context.seed)
    names = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return input_norms(subject, names, examples, context.progress)


def _pattern(pattern: str, name: str, width: int) -> tuple[int, int]:
    keep, of = map(int, pattern.split(":"))
    if width % of:
        raise StageError(f"{name} has rows of {width}, which pattern {pattern} does not divide; put it in left_alone")
    return keep, of


@torch.no_grad()
def _make_permanent(module: Module) -> None:
    mask: Tensor = module.weight_mask  # type: ignore[assignment]
    torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    module.weight.masked_fill_(mask == 0, 0.0)  # a negative weight times 0 is −0, which is no zero in a file


def _zeros(modules: Mapping[str, Module]) -> int:
    return sum(int((module.weight == 0).sum()) for module in modules.values())


def _summary(module: nn.Module, modules: Mapping[str, Module], gone: int) -> str:
    weights = sum(part.weight.numel() for part in modules.values())
    whole = sum(parameter.numel() for parameter in module.parameters())
    share = _zeros(modules) / weights
    stored = (whole - weights + weights * (1 - share + 1 / 32)) / whole
    shrinks = f"shrinks to {stored:.2f} of its size" if stored < 1 else "does not shrink"
    return (
        f"{gone:,} weights set to zero; zeros are {share:.1%} of the weights of {len(modules)} modules. Stored as a "
        f"bit for each weight and those that are left, a float32 file {shrinks}. Dense kernels multiply by zeros like "
        "by any number and get no faster"
    )


def _weight(module: nn.Module, name: str) -> nn.Parameter:
    weight: nn.Parameter = module.get_submodule(name).weight  # type: ignore[assignment]
    return weight


def _masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(~mask, 0.0)
