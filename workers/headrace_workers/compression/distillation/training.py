"""Training: the one loop behind distilling, recovering and fine-tuning.

AdamW, a linear warm-up and a linear way down. What is learned is measured on validation data five times on the way, and
the best weights win, those at the start included: training never makes a model worse by its own measure. Weights,
losses and measurements are float32 throughout; products are bfloat16 where the processor has tiles for them (AMX),
which halves the time of a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from headrace.errors import CompressionDataError, StageError
from headrace_workers.compression.data import Examples
from headrace_workers.compression.recipe import Training
from headrace_workers.node import capabilities

__all__ = ["TrainingReport", "TrainingTask", "batch_order", "fast_products", "text_lengths", "train"]

_CHECKS: Final = 5
"""How often validation data is looked at, besides before the first step."""
_POOL_BATCHES: Final = 16
"""Batches whose examples are sorted by length together. More would pad less, and shuffle less."""


class TrainingTask(Protocol):
    """What is trained, on what, and how far it is from what is wanted."""

    @property
    def module(self) -> nn.Module:
        """What is trained; all of its parameters are."""

    @property
    def beside(self) -> nn.Module:
        """Trained with it and not kept."""

    @property
    def lengths(self) -> Sequence[int]:
        """How long each training example is: examples of alike lengths go together."""

    def backward(self, places: Sequence[int]) -> float:
        """Add the gradients of the mean loss of these training examples; returns it."""

    def validation_loss(self) -> float:
        """The mean loss on validation data. Called without gradients, the module in eval mode."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training came to."""

    steps: int
    best_step: int
    """After how many steps the weights that were kept stood; 0: they are those of the start."""
    first_loss: float
    """Validation loss before the first step."""
    best_loss: float


def train(
    task: TrainingTask,
    training: Training,
    *,
    seed: int,
    progress: Callable[[float], None] = lambda _share: None,
    held: AbstractContextManager[Any] | None = None,
) -> TrainingReport:
    """Train a module in place. The same seed gives the same weights on the same machine and number of threads.

    Args:
        task: what to train.
        training: how long, how fast.
        seed: of the order of examples and of dropout; the process's own random numbers are left as they are.
        progress: takes the share of steps that are done.
        held: entered while there are gradients; keeps zeros zero.

    Returns:
        How it went. The module is in eval mode, without gradients, and holds the best weights that it had.

    Raises:
        StageError: the loss or its gradient is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task.module.requires_grad_(True)
        try:
            with held or nullcontext():
                return _trained(task, training, seed, progress)
        finally:
            task.module.eval().requires_grad_(False).zero_grad(set_to_none=True)


def _trained(task: TrainingTask, training: Training, seed: int, progress: Callable[[float], None]) -> TrainingReport:
    optimizer = _optimizer([task.module, task.beside], training)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, training))
    best = _Best(task)
    best.look(0)
    first_loss = best.loss
    every = max(1, training.steps // _CHECKS)
    task.module.train()
    for step, places in enumerate(
        itertools.islice(batch_order(task.lengths, training.batch_size, seed), training.steps), 1
    ):
        _step(task, places, optimizer, training, step)
        schedule.step()
        progress(step / training.steps)
        if step % every == 0 or step == training.steps:
            best.look(step)
    best.restore()
    return TrainingReport(training.steps, best.step, first_loss, best.loss)


def _step(
    task: TrainingTask, places: Sequence[int], optimizer: torch.optim.Optimizer, training: Training, step: int
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss = task.backward(places)
    norm = torch.nn.utils.clip_grad_norm_(_parameters(optimizer), training.clip_norm)
    if not (math.isfinite(loss) and torch.isfinite(norm)):
        raise StageError(
            f"training broke at step {step} of {training.steps}: the loss is {loss}, the gradient's norm {norm.item()};"
            f" a learning rate below {training.learning_rate} may help, if the weights were finite to begin with"
        )
    optimizer.step()


def rate_share(step: int, training: Training) -> float:
    """What share of the learning rate the step with this number, from 0, takes."""
    warm = round(training.warmup * training.steps)
    if step < warm:
        return (step + 1) / warm
    return (training.steps - step) / (training.steps - warm)


def batch_order(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Places of examples, a batch at a time, without end; each example once before any comes again.

    Within a batch examples are about as long as each other, since what is shorter than the longest is padded. Which
    ones meet, and in which order batches come, differs from round to round.
    """
    if not lengths:
        raise CompressionDataError("there is nothing to train with")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        pool = batch_size * _POOL_BATCHES
        batches = [
            batch
            for start in range(0, len(order), pool)
            for batch in _alike(order[start : start + pool], lengths, batch_size)
        ]
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[at]


def _alike(places: list[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    by_length = sorted(places, key=lambda place: lengths[place])
    return [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]


def text_lengths(examples: Examples) -> list[int]:
    """Characters of each text; 0 where examples are tensors, which are all of one shape."""
    return [len(value) if isinstance(value, str) else 0 for value in examples.inputs]


def fast_products() -> AbstractContextManager[Any]:
    """Entered for a forward pass with gradients: products in bfloat16 where the processor is made for them."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled="amx_bf16" in capabilities().flags)


class _Best:
    """The weights with the least validation loss so far."""

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self._weights: dict[str, Tensor] = {}
        self.loss, self.step = math.inf, 0

    def look(self, step: int) -> None:
        """Measure, and keep the weights if they are better than any before."""
        module = self._task.module
        was_training = module.training
        module.eval()
        with torch.no_grad():
            loss = self._task.validation_loss()
        module.train(was_training)
        if loss < self.loss or not self._weights:
            self.loss, self.step = loss, step
            self._weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def restore(self) -> None:
        self._task.module.load_state_dict(self._weights)


def _optimizer(modules: Sequence[nn.Module], training: Training) -> torch.optim.Optimizer:
    """AdamW; biases and norms, which are vectors, do not decay."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups = [
        {"params": [one for one in parameters if one.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
