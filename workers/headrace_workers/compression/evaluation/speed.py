"""How fast a compressed model is on this node: against the model as it came, in turn, in the same moments.

The node is shared and its clock wanders, so seconds mean little and the ratios of neighbouring runs mean much: a figure
is the median over pairs. Encoders run in the engine that serves them, packed on both sides; what has no engine runs
forward passes. Tokenizing is on neither side: it is the same for both, and overlaps with the model where it is served.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict

from headrace.errors import CompressionDataError
from headrace_workers.artifacts.artifact import Task, is_artifact, open_artifact
from headrace_workers.compression.data import Examples
from headrace_workers.compression.evaluation.prepared import prepared_copy
from headrace_workers.compression.subject import Subject
from headrace_workers.engines.base import Prepared
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.kernels.selection import KernelTable
from headrace_workers.models.preparing import Precision

__all__ = ["BucketSpeed", "Contestant", "Speed", "compare", "engine_contestant", "module_contestant", "workload"]

_BUCKETS: Final = {"up to 16 tokens": 16, "up to 64 tokens": 64, "up to 256 tokens": 256, "longer": 1 << 30}
_ALL: Final = "mixed"
_TOKENS: Final = 4096
"""Of a round over all lengths; a bucket has a quarter of that."""
_MODULE_BATCH: Final = 32


class BucketSpeed(BaseModel):
    """Texts of like length."""

    model_config = ConfigDict(frozen=True)

    items: int
    """Examples in a round."""
    speedup: float
    """The median over rounds of the baseline's seconds / the contender's in that round."""
    lowest: float
    """Of any round."""
    highest: float
    baseline_items_per_s: float
    items_per_s: float


class Speed(BaseModel):
    """A contender against a baseline."""

    model_config = ConfigDict(frozen=True)

    speedup: float
    """Over the data's own mix of lengths."""
    rounds: int
    load_s: float
    """From files to ready, kernels measured."""
    buckets: dict[str, BucketSpeed]


@dataclass(frozen=True)
class Contestant:
    """A model that is ready to run."""

    run: Callable[[Sequence[Any]], object]
    """Takes examples that were made ready by `prepare`."""
    prepare: Callable[[Sequence[Any]], list[Any]]
    load_s: float = 0.0


def engine_contestant(model: str | Path, *, task: Task | None = None, variant: str | None = None) -> Contestant:
    """An encoder in its engine, kernels chosen by measurement, with the process's threads.

    Args:
        model: an artifact, which runs as it is stored, or a plain model, which runs in fp32.
        task: what it does; None: what its files say.
        variant: of an artifact; None: its first.

    Raises:
        ModelLoadError: it cannot be loaded.
        ArtifactError: it is an artifact, and broken.
    """
    name, precision = _stored_as(model, variant)
    engine = EncoderEngine(model, task=task, variant=name, precision=precision, overlong="truncate")

    def prepare(texts: Sequence[Any]) -> list[Any]:
        return [item for item in engine.prepare([(text, {}) for text in texts]) if isinstance(item, Prepared)]

    return Contestant(engine.run, prepare, engine.info.load_s)


def _stored_as(model: str | Path, name: str | None) -> tuple[str, Precision]:
    """A model's variant, and what it computes in."""
    if not is_artifact(model):
        return "", "fp32"
    artifact = open_artifact(model)
    variant = artifact.variant(name)
    return variant.name, "int8" if variant.layers else "fp32"


def module_contestant(subject: Subject) -> Contestant:
    """Any subject, by forward passes of up to 32 examples; kernels chosen by measurement."""
    started_s = time.perf_counter()
    module = prepared_copy(subject, KernelTable())

    def prepare(inputs: Sequence[Any]) -> list[Any]:
        return list(subject.batches(Examples(inputs), _MODULE_BATCH))

    @torch.inference_mode()
    def run(batches: Sequence[Any]) -> None:
        for batch in batches:
            subject.answers(batch, module=module)

    return Contestant(run, prepare, time.perf_counter() - started_s)


def workload(subject: Subject, examples: Examples, *, tokens: int = _TOKENS) -> dict[str, list[Any]]:
    """Examples to time, by bucket of length; `mixed` has them as they come.

    Args:
        subject: what knows their lengths.
        examples: where they are from.
        tokens: of a round over all lengths; one example at least.

    Raises:
        CompressionDataError: there are no examples.
    """
    if not len(examples):
        raise CompressionDataError("there is nothing to measure speed with: no examples")
    lengths = [int(batch.valid.sum()) for batch in subject.batches(examples, 1)]
    buckets = {_ALL: _first(list(range(len(lengths))), lengths, tokens)}
    if subject.task != "custom":
        for name, places in _by_length(lengths).items():
            buckets[name] = _first(places, lengths, tokens // 4)
    return {name: list(examples.take(places)) for name, places in buckets.items()}


def _by_length(lengths: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, length in enumerate(lengths):
        name = next(name for name, most in _BUCKETS.items() if length <= most)
        found.setdefault(name, []).append(place)
    return {name: found[name] for name in _BUCKETS if name in found}


def _first(places: Sequence[int], lengths: Sequence[int], tokens: int) -> list[int]:
    """As many of the places as have so many tokens together; one at least."""
    kept: list[int] = []
    for place in places:
        tokens -= lengths[place]
        if kept and tokens < 0:
            break
        kept.append(place)
    return kept


def compare(
    baseline: Contestant, contender: Contestant, work: Mapping[str, Sequence[Any]], *, rounds: int = 5
) -> Speed:
    """Measure two models in turn.

    Args:
        baseline: what counts as 1.
        contender: what is asked about.
        work: examples by bucket, one of them `mixed`: see `workload`.
        rounds: pairs for each bucket.
    """
    buckets = {name: _bucket(baseline, contender, inputs, rounds) for name, inputs in work.items()}
    return Speed(speedup=buckets[_ALL].speedup, rounds=rounds, load_s=contender.load_s, buckets=buckets)


def _bucket(baseline: Contestant, contender: Contestant, inputs: Sequence[Any], rounds: int) -> BucketSpeed:
    sides = [(side, side.prepare(inputs)) for side in (baseline, contender)]
    for side, ready in sides:
        side.run(ready)
    seconds = [[_timed_s(side, ready) for side, ready in sides] for _ in range(rounds)]
    ratios = [before_s / after_s for before_s, after_s in seconds]
    return BucketSpeed(
        items=len(inputs),
        speedup=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        baseline_items_per_s=len(inputs) / statistics.median(before_s for before_s, _ in seconds),
        items_per_s=len(inputs) / statistics.median(after_s for _, after_s in seconds),
    )


def _timed_s(side: Contestant, ready: Sequence[Any]) -> float:
    started_s = time.perf_counter()
    side.run(ready)
    return time.perf_counter() - started_s
