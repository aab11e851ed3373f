"""Which kernel runs a layer: measured on this node, never slower than fp32, and never at the price of an answer.

Two decisions, of different weight. int8 or fp32 is decided **once for a layer**, over all batch lengths it serves,
because the two give different answers and a job must not get one or the other by the company it is in. Which of several
int8 kernels *of the same numerics* runs is decided for each bucket of batch lengths, since that changes no bit.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor

from headrace_workers.kernels.affine import affine_failure, affine_kernels
from headrace_workers.kernels.linear import FP32, Fp32Kernel, LinearKernel, int8_kernels
from headrace_workers.kernels.selftest import failure
from headrace_workers.kernels.weights import AffineWeight, Int8Weight, Shape

__all__ = [
    "BUCKETS",
    "AnyKernel",
    "AnyWeight",
    "Choice",
    "KernelTable",
    "Policy",
    "bucket_of",
    "sound_affine_kernels",
    "sound_int8_kernels",
]

log = logging.getLogger(__name__)

BUCKETS: Final = (1, 8, 32, 128, 512)
"""Batch lengths (rows) at which kernels are measured; a batch counts as the smallest that holds it, or the last."""

Policy = Literal["measured", "int8", "fp32"]
"""How the choice is made: by measurement, or fixed: the most promising int8 kernel, or fp32. Weights of few bits have
floating-point inputs unless `int8` asks for them to be rounded, too."""

AnyWeight = Int8Weight | AffineWeight
AnyKernel = LinearKernel[Any]
"""A kernel for one of them; its weight is of the kind that it was listed for."""

_REPEATS: Final = 3
_DOUBTFUL_REPEATS: Final = 15
_NOISE: Final = 1.03
"""How much slower than fp32 a kernel may look: two timings of one kernel differ by more than that."""


def bucket_of(rows: int) -> int:
    """The index in `BUCKETS` of a batch of so many rows."""
    return min(bisect_left(BUCKETS, rows), len(BUCKETS) - 1)


def sound_int8_kernels() -> tuple[LinearKernel[Int8Weight], ...]:
    """The int8 kernels of this process that passed their self-test, the most promising first."""
    return tuple(kernel for kernel in int8_kernels() if _is_sound(kernel, failure(kernel)))


def sound_affine_kernels() -> tuple[LinearKernel[AffineWeight], ...]:
    """The kernels for weights of few bits that passed theirs."""
    return tuple(kernel for kernel in affine_kernels() if _is_sound(kernel, affine_failure(kernel)))


def _is_sound(kernel: AnyKernel, problem: str) -> bool:
    if problem:
        log.error("kernel %s is not used: %s", kernel.name, problem)
    return not problem


@dataclass(frozen=True)
class Choice:
    """Which kernels run a layer of one shape, for each bucket of `BUCKETS`; all of one numerics."""

    kernels: tuple[AnyKernel, ...]
    numerics: str
    speedup: tuple[float, ...] = ()
    """Over fp32, bucket by bucket; empty where nothing was measured."""

    def __post_init__(self) -> None:
        if len(self.kernels) != len(BUCKETS):
            raise ValueError(f"{len(self.kernels)} kernels for {len(BUCKETS)} buckets")

    def describe(self) -> dict[str, Any]:
        """For `EngineInfo.details`."""
        names = [kernel.name for kernel in self.kernels]
        table: dict[str, Any] = {f"up to {rows} rows": name for rows, name in zip(BUCKETS, names, strict=True)}
        shown: dict[str, Any] = {"kernel": names[0]} if len(set(names)) == 1 else {"kernels": table}
        if self.speedup:
            shown["speedup_over_fp32"] = [round(ratio, 2) for ratio in self.speedup]
        return shown


@dataclass
class KernelTable:
    """The choices for all shapes of a model. One table a process: shapes are measured once and shared."""

    policy: Policy = "measured"
    kernels: Sequence[LinearKernel[Int8Weight]] = field(default_factory=sound_int8_kernels)
    choices: dict[Shape, Choice] = field(default_factory=dict)

    def choose(self, weight: AnyWeight) -> Choice:
        """The choice for a layer like this one; measured at its first call for the shape."""
        if weight.shape not in self.choices:
            choice = self._decide(weight)
            _check_one_numerics(weight.shape, choice)
            self.choices[weight.shape] = choice
        return self.choices[weight.shape]

    def describe(self) -> dict[str, Any]:
        """For `EngineInfo.details`."""
        return {str(shape): choice.describe() for shape, choice in self.choices.items()}

    @cached_property
    def _affine_kernels(self) -> Sequence[AnyKernel]:
        """Asked for by the first layer of few bits, if there is one."""
        return sound_affine_kernels()

    def _candidates(self, weight: AnyWeight) -> Sequence[AnyKernel]:
        if self.policy == "fp32":
            return ()
        return self._affine_kernels if isinstance(weight, AffineWeight) else self.kernels

    def _decide(self, weight: AnyWeight) -> Choice:
        fp32 = Choice((Fp32Kernel(),) * len(BUCKETS), FP32)
        able = [kernel for kernel in self._candidates(weight) if not kernel.refusal(weight.shape)]
        if not able:
            return fp32
        family = _family(able, weight.shape)
        if self.policy == "int8":
            return Choice((family[0],) * len(BUCKETS), family[0].numerics(weight.shape))
        choice = _fastest(family, weight, _REPEATS)
        if min(choice.speedup) * _NOISE < 1:  # a neighbour's burst may have fallen on one side: look closer
            choice = _fastest(family, weight, _DOUBTFUL_REPEATS)
        if min(choice.speedup) * _NOISE < 1:
            log.warning(
                "%s stays in fp32: %s was %.2f times as fast", weight.shape, choice.numerics, min(choice.speedup)
            )
            return fp32
        return choice


def _family(kernels: Sequence[AnyKernel], shape: Shape) -> list[AnyKernel]:
    """The kernels that give the same bits as the most promising one."""
    numerics = kernels[0].numerics(shape)
    return [kernel for kernel in kernels if kernel.numerics(shape) == numerics]


def _check_one_numerics(shape: Shape, choice: Choice) -> None:
    for kernel in choice.kernels:
        if kernel.numerics(shape) != choice.numerics:
            raise AssertionError(f"{kernel.name} does not give {choice.numerics} for {shape}")


def _fastest(kernels: Sequence[AnyKernel], weight: AnyWeight, repeats: int) -> Choice:
    candidates = {kernel: kernel.prepare(weight) for kernel in (*kernels, Fp32Kernel())}
    chosen, speedups = [], []
    for rows in BUCKETS:
        x = torch.randn(rows, weight.shape.inputs)
        timings_s = _timings_s(candidates, x, repeats)
        fp32_s = next(value for kernel, value in timings_s.items() if kernel.name == FP32)
        best = min(kernels, key=timings_s.__getitem__)
        chosen.append(best)
        speedups.append(fp32_s / timings_s[best])
    return Choice(tuple(chosen), kernels[0].numerics(weight.shape), tuple(speedups))


def _timings_s(
    candidates: Mapping[AnyKernel, Callable[[Tensor], Tensor]], x: Tensor, repeats: int
) -> dict[AnyKernel, float]:
    """The best of `repeats` rounds; in a round every candidate has its turn, so a slow moment slows them all."""
    clock = _clock()
    best_s = dict.fromkeys(candidates, float("inf"))
    for run in candidates.values():
        run(x)
    for _ in range(repeats if x.shape[0] > 32 else 5 * repeats):
        for kernel, run in candidates.items():
            started_s = clock()
            run(x)
            best_s[kernel] = min(best_s[kernel], clock() - started_s)
    return best_s


def _clock() -> Callable[[], float]:
    """This thread's own time where it does all the work: a neighbour who takes the core slows no candidate then."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
