"""SmoothQuant: moving the spread of activations into weights, where it does less harm.

A channel that is far larger than the others takes all the levels of an int8 row. Whatever stands before a linear layer
and scales channels one by one, a norm or another linear layer, can hand it every channel divided by some factor,
whose columns then get that factor: nothing changes but what there is to round. Xiao et al., "SmoothQuant: Accurate
and Efficient Post-Training Quantization for Large Language Models", arXiv 2211.10438.

It is exact only where nobody else reads what is scaled; a residual beside the norm does, for one. So no list of
architectures says where: each place that looks right is scaled once by way of trial, and stays only if the model's
answers stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace_workers.compression.data import Examples
from headrace_workers.compression.quantization.calibration import calibrate
from headrace_workers.compression.quantization.observers import ChannelMaxObserver
from headrace_workers.compression.subject import Batch, Subject
from headrace_workers.compression.watching import watched

__all__ = ["Fold", "exact_folds", "smooth"]

_EXACT: Final = 1e-4
"""Relative distance of answers that rounding in float32 can make."""
_TRIALS: Final = 4
"""Examples a fold is tried on."""
_LEAST: Final = 1e-5
_MOST: Final = 1e5
_CHAINS: Final = (("v_proj", "o_proj"), ("value", "output.dense"), ("v_lin", "out_lin"), ("up_proj", "down_proj"))
"""Linear layers of which one feeds the other, through nothing but sums over positions or a product with a gate."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Fold:
    """A place where channels can be scaled: what makes them, and the linear layers that read them."""

    maker: str
    """A norm, or a linear layer, by name."""
    readers: tuple[str, ...]


def smooth(subject: Subject, alpha: float, examples: Examples, progress: Progress) -> list[Fold]:
    """Move the share `alpha` of the spread of activations into weights, in place, wherever that is exact.

    Args:
        subject: a model in float32; its answers stay the same but for rounding.
        alpha: 0 to 1; the paper's 0.5 shares the difficulty evenly.
        examples: to calibrate with.
        progress: told how far it is.

    Returns:
        Where it was done; empty if the model has no such place.

    Raises:
        StageError: what comes into a layer is not finite.
    """
    folds = exact_folds(subject, examples)
    observers = {fold.readers[0]: ChannelMaxObserver() for fold in folds}
    if folds:
        calibrate(subject, observers, examples, progress)
    for fold in folds:
        largest = _by_made(subject.module, fold, observers[fold.readers[0]].largest)
        weights = torch.stack([_columns(subject.module, fold, reader) for reader in fold.readers]).amax(0)
        factors = (largest.clamp_min(_LEAST) ** alpha / weights.clamp_min(_LEAST) ** (1 - alpha)).clamp(_LEAST, _MOST)
        _scale(subject.module, fold, factors)
    return folds


def exact_folds(subject: Subject, examples: Examples) -> list[Fold]:
    """Where a model's channels can be scaled without its answers changing, found out by doing it."""
    batch = next(iter(subject.batches(examples.take(range(min(_TRIALS, len(examples)))), _TRIALS)))
    module = subject.module.eval()
    folds = [fold for fold in [*_norms(subject, batch), *_chains(module)] if _fits(module, fold)]
    if not folds or _unchanged(subject, folds, batch):
        return folds
    return [fold for fold in folds if _unchanged(subject, [fold], batch)]


@torch.no_grad()
def _norms(subject: Subject, batch: Batch) -> Iterator[Fold]:
    """Norms whose very output comes into linear layers."""
    module = subject.module
    norms = [name for name, part in module.named_modules() if _is_norm(part)]
    linears = [name for name, part in module.named_modules() if type(part) is nn.Linear]
    makers: list[tuple[Tensor, str]] = []
    readers: dict[str, list[str]] = {name: [] for name in norms}

    def made(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _arguments, output: makers.append((output, name))

    def read(name: str, x: Tensor) -> None:
        for output, maker in makers:
            if output is x and name not in readers[maker]:
                readers[maker].append(name)

    handles = [module.get_submodule(name).register_forward_hook(made(name)) for name in norms]
    try:
        with watched(module, linears, read):
            subject.answers(batch)
    finally:
        for handle in handles:
            handle.remove()
    yield from (Fold(norm, tuple(names)) for norm, names in readers.items() if names)


def _is_norm(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return type(part).__name__.endswith("Norm") and isinstance(weight, nn.Parameter) and weight.dim() == 1


def _chains(module: nn.Module) -> Iterator[Fold]:
    names = {name for name, part in module.named_modules() if type(part) is nn.Linear}
    for name in names:
        for maker, reader in _CHAINS:
            if name == maker or name.endswith(f".{maker}"):
                for within in _around(name.removesuffix(maker)):
                    if (other := within + reader) in names:
                        yield Fold(name, (other,))
                        break


def _around(prefix: str) -> list[str]:
    """The module a layer stands in, and the one around that: BERT's value projection is one deeper than its output."""
    parts = prefix.rstrip(".").split(".")
    return [prefix, ".".join(parts[:-1]) + "." if len(parts) > 1 else ""]


def _fits(module: nn.Module, fold: Fold) -> bool:
    made = _made(module, fold)
    return all(module.get_submodule(reader).in_features % made == 0 for reader in fold.readers)  # type: ignore[operator]


def _made(module: nn.Module, fold: Fold) -> int:
    """Channels that the maker makes."""
    return int(module.get_submodule(fold.maker).weight.shape[0])  # type: ignore[index]


def _places(module: nn.Module, fold: Fold) -> Tensor:
    """Which of the made channels each input of the readers is: int64 [inputs].

    Where there are more inputs than channels, attention repeats each head of values for the heads that share it.
    """
    made = _made(module, fold)
    inputs = int(module.get_submodule(fold.readers[0]).in_features)  # type: ignore[arg-type]
    size = _head_size(module, fold.maker) if inputs != made else made
    heads = torch.arange(made).view(-1, size)
    return heads.repeat_interleave(inputs // made, dim=0).reshape(-1)


def _head_size(module: nn.Module, name: str) -> int:
    attention = module.get_submodule(name.rpartition(".")[0])
    size = getattr(attention, "head_dim", None)
    return size if isinstance(size, int) and _divides(size, module.get_submodule(name)) else 1


def _divides(size: int, linear: Any) -> bool:
    return size > 0 and linear.out_features % size == 0


def _by_made(module: nn.Module, fold: Fold, by_input: Tensor) -> Tensor:
    """The largest of what the inputs that are one channel have: [channels]."""
    return torch.zeros(_made(module, fold)).scatter_reduce(0, _places(module, fold), by_input, "amax")


def _columns(module: nn.Module, fold: Fold, reader: str) -> Tensor:
    weight: Tensor = module.get_submodule(reader).weight  # type: ignore[assignment]
    return _by_made(module, fold, weight.detach().abs().amax(0))


@torch.no_grad()
def _scale(module: nn.Module, fold: Fold, factors: Tensor) -> None:
    """Divide what is made by factors, and multiply the columns of those who read it."""
    maker: Any = module.get_submodule(fold.maker)
    for tensor in (maker.weight, getattr(maker, "bias", None)):
        if tensor is not None:
            tensor.div_(factors.view(-1, *[1] * (tensor.dim() - 1)))
    for reader in fold.readers:
        module.get_submodule(reader).weight.mul_(factors[_places(module, fold)])  # type: ignore[operator]


@torch.no_grad()
def _unchanged(subject: Subject, folds: Sequence[Fold], batch: Batch) -> bool:
    """Whether the answers stay while folds are scaled. The factors are powers of two, so that they leave no trace."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        2.0 ** (torch.randint(0, 2, (_made(subject.module, fold),), generator=generator) * 4 - 2) for fold in folds
    ]
    before = subject.answers(batch).rows
    for fold, by in zip(folds, factors, strict=True):
        _scale(subject.module, fold, by)
    after = subject.answers(batch).rows
    for fold, by in zip(folds, factors, strict=True):
        _scale(subject.module, fold, 1 / by)
    return bool((after - before).norm() <= _EXACT * before.norm())
