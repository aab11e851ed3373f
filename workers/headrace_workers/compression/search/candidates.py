"""Candidates: recipes that may reach a target, each with what it would gain, before anything is trained.

The proposals follow from what was measured and nothing else: the latency table says how narrow layers must be for a
speed (ZipLM, arXiv 2302.04089), the ranking of sensitivities says which layers are better left alone. The first is
always plain int8, which needs no training: a search has an answer from its first minute.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace_workers.compression.recipe import (
    ActivationScheme,
    Distill,
    PruneStructured,
    Quantize,
    Recipe,
    Recover,
    Stage,
    Student,
    Training,
    WeightScheme,
)
from headrace_workers.compression.search.latency_table import LatencyTable, LinearUse
from headrace_workers.compression.search.profile import Profile
from headrace_workers.compression.search.target import Target

__all__ = ["Candidate", "Effort", "plain", "propose", "shapes_needed"]

_RATIOS: Final = (0.25, 0.5, 0.75)
"""Of what is cut away from feed-forward networks, heads and layers."""
_STEP: Final = 1 / 8
"""How finely the ratio that just meets a speed is looked for."""
_ROUND_TO: Final = 16
_KEPT_EXACT: Final = (1, 2, 4)
"""How many of the most sensitive layers are left in full precision."""
_HOPELESS: Final = 0.5
"""Predictions are of linear layers alone, and bright: what falls below this share of a target's speed is not tried."""


@dataclass(frozen=True)
class Effort:
    """How long candidates train, at full fidelity."""

    distill_steps: int = 1500
    recover_steps: int = 500
    batch_size: int = 32


@dataclass(frozen=True)
class Candidate:
    """A recipe, and what it is expected to gain over the model as it came."""

    name: str
    recipe: Recipe
    speedup: float
    """Of the linear layers, by the latency table."""
    size_ratio: float
    uses: tuple[LinearUse, ...]
    """The linear layers that are left."""

    @property
    def key(self) -> str:
        """12 hexadecimal digits that tell recipes apart."""
        content = json.dumps(self.recipe.model_dump(mode="json", exclude={"description"}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def trains(self) -> bool:
        """Whether a stage of it trains."""
        return any(isinstance(stage, Distill | Recover) for stage in self.recipe.stages)


@dataclass(frozen=True)
class _Sketch:
    """A candidate before it is priced."""

    name: str
    stages: tuple[Stage, ...]
    profile: Profile
    kept: frozenset[str] = frozenset()
    """Layers that stay in full precision."""

    @property
    def weights(self) -> WeightScheme:
        """How its weights are stored."""
        last = self.stages[-1]
        assert isinstance(last, Quantize)
        return last.weights


def plain(profile: Profile, table: LatencyTable, *, seed: int = 0) -> Candidate:
    """Plain int8: what every search tries first."""
    return _Price(profile, table, 0.0).candidate(_int8(profile), seed)


def propose(
    profile: Profile,
    table: LatencyTable,
    target: Target,
    *,
    ranking: Sequence[str] = (),
    trainable: bool = True,
    effort: Effort | None = None,
    seed: int = 0,
    most: int = 12,
    rest_ms: float = 0.0,
) -> list[Candidate]:
    """Candidates for a target, the most promising first.

    Args:
        profile: the model's shapes.
        table: of this node, with every shape of `shapes_needed`.
        target: what shall be reached.
        ranking: names of layers, the most sensitive to quantization first.
        trainable: whether there is data to train with; without, only quantization is proposed.
        effort: how long they may train.
        seed: of every recipe.
        most: how many at most.
        rest_ms: what the model does besides its linear layers (`LatencyTable.rest_ms`).

    Raises:
        StageError: the table lacks a shape.
    """
    effort = effort or Effort()
    sketches = list(_sketches(profile, ranking, effort if trainable else None))
    price = _Price(profile, table, rest_ms)
    if trainable and (speed := target.limit("speed")) is not None:
        sketches += _just_fast_enough(profile, price, speed, effort)
    first, *others = {found.key: found for found in (price.candidate(sketch, seed) for sketch in sketches)}.values()
    return [first, *_promising(others, target)][:most]


def shapes_needed(profile: Profile, *, trainable: bool = True) -> list[LinearUse]:
    """Every linear layer that a proposal may have to be priced with."""
    sketches = list(_sketches(profile, (), Effort() if trainable else None))
    if trainable:
        sketches += _ladder(profile, Effort())
    return sorted({use for sketch in sketches for use in sketch.profile.uses()} | set(profile.uses()))


def _promising(candidates: Iterable[Candidate], target: Target) -> list[Candidate]:
    """Those with hope, the ones that should meet the target first, and among these the largest: they lose least."""
    speed, size = target.limit("speed") or 0.0, target.limit("size") or math.inf

    def order(candidate: Candidate) -> tuple[float, float]:
        missing = max(0.0, speed - candidate.speedup) / (speed or 1) + max(0.0, candidate.size_ratio - size)
        return missing, -candidate.size_ratio

    hopeful = [candidate for candidate in candidates if candidate.speedup >= _HOPELESS * speed]
    return sorted(hopeful, key=order)


@dataclass(frozen=True)
class _Price:
    """What candidates gain over a model."""

    original: Profile
    table: LatencyTable
    rest_ms: float

    def candidate(self, sketch: _Sketch, seed: int) -> Candidate:
        """A sketch with its price."""
        return Candidate(
            name=sketch.name,
            recipe=Recipe(stages=list(sketch.stages), seed=seed, description=f"proposed by a search: {sketch.name}"),
            speedup=self.speedup(sketch),
            size_ratio=self.size_ratio(sketch),
            uses=tuple(self.uses(sketch)),
        )

    def uses(self, sketch: _Sketch) -> list[LinearUse]:
        """Its linear layers."""
        return sketch.profile.uses(quantized=_computes_in_int8(sketch.weights), kept=sketch.kept)

    def speedup(self, sketch: _Sketch) -> float:
        """The rest, attention above all, goes with the number and the width of blocks."""
        before, after = (profile.blocks * profile.hidden for profile in (self.original, sketch.profile))
        share = after / before if before else 1.0
        return self.table.speedup(self.uses(sketch), self.original.uses(), rest_ms=self.rest_ms, share=share)

    def size_ratio(self, sketch: _Sketch) -> float:
        """Of bytes on disk."""
        stored = sketch.profile.stored_bytes(sketch.weights.bits, kept=sketch.kept)
        return stored / self.original.stored_bytes(32)


def _computes_in_int8(weights: WeightScheme) -> bool:
    return weights.bits == 8 and weights.group is None and weights.symmetric and weights.activations.kind != "none"


# -- what can be done to a model ------------------------------------------------------------------------------


def _sketches(profile: Profile, ranking: Sequence[str], effort: Effort | None) -> Iterator[_Sketch]:
    yield _int8(profile)
    for count in _KEPT_EXACT:
        if len(ranking) > count:
            kept = ranking[:count]
            stage = Quantize(overrides=dict.fromkeys(kept))
            yield _Sketch(f"int8, {count} exact", (stage,), profile, frozenset(kept))
    yield _Sketch("int4", (_four_bits(),), profile)
    if effort is not None:
        yield from _cut(profile, effort)
        yield from _students(profile, effort)


def _int8(profile: Profile) -> _Sketch:
    return _Sketch("int8", (Quantize(),), profile)


def _four_bits() -> Quantize:
    weights = WeightScheme(bits=4, group=32, symmetric=False, activations=ActivationScheme(kind="none"))
    return Quantize(weights=weights)


def _cut(profile: Profile, effort: Effort) -> Iterator[_Sketch]:
    """Feed-forward networks, heads and layers cut, alone and together, and then recovered."""
    for ratio in _RATIOS:
        if profile.ffn:
            yield _pruned(profile, effort, ffn=ratio)
        if round(profile.blocks * (1 - ratio)) in range(1, profile.blocks):
            yield _pruned(profile, effort, layers=ratio)
    if profile.ffn and profile.groups > 1:
        yield _pruned(profile, effort, ffn=0.5, heads=0.25)
        yield _pruned(profile, effort, ffn=0.75, heads=0.5)


def _pruned(profile: Profile, effort: Effort, **ratios: float) -> _Sketch:
    stages: list[Stage] = []
    for name, ratio in ratios.items():
        stages.append(PruneStructured(target=name, ratio=ratio, round_to=_ROUND_TO, scope=_scope(name)))
        profile = profile.without(name, ratio, round_to=_ROUND_TO)
    name = ", ".join(f"{what} −{ratio:.0%}" for what, ratio in ratios.items())
    recover = Recover(training=Training(steps=effort.recover_steps, batch_size=effort.batch_size, learning_rate=3e-4))
    return _Sketch(f"{name}, int8", (*stages, recover, Quantize()), profile)


def _scope(target: str) -> str:
    return "per_layer" if target == "heads" else "global"


def _students(profile: Profile, effort: Effort) -> Iterator[_Sketch]:
    """Fewer layers, and narrower ones: by halves, as MiniLM and TinyBERT do."""
    if not profile.blocks or not profile.heads:
        return
    layers = max(1, profile.blocks // 2)
    for student in (
        Student(layers=layers),
        Student(layers=layers, **_narrower(profile, 2)),
        Student(layers=max(1, profile.blocks // 3), **_narrower(profile, 2)),
        Student(layers=layers, **_narrower(profile, 3)),
    ):
        yield _distilled(profile, effort, student)


def _narrower(profile: Profile, by: int) -> dict[str, int]:
    """Whole groups of heads of the same size; the feed-forward network narrower to the same degree."""
    heads = max(1, profile.groups // by) * (profile.heads // profile.groups)
    hidden = heads * (profile.hidden // profile.heads)
    return {"hidden": hidden, "heads": heads, "ffn": max(_ROUND_TO, profile.ffn * hidden // profile.hidden)}


def _distilled(profile: Profile, effort: Effort, student: Student) -> _Sketch:
    training = Training(steps=effort.distill_steps, batch_size=effort.batch_size)
    smaller = profile.student(student)
    name = f"student {smaller.blocks}×{smaller.hidden}, int8"
    return _Sketch(name, (Distill(student=student, training=training), Quantize()), smaller)


# -- what is just fast enough ---------------------------------------------------------------------------------


def _just_fast_enough(profile: Profile, price: _Price, speed: float, effort: Effort) -> list[_Sketch]:
    """Of the ladder, the first step that is predicted to reach a speed: it cuts no more than it must."""
    if price.speedup(_int8(profile)) >= speed:
        return []
    return [sketch for sketch in _ladder(profile, effort) if price.speedup(sketch) >= speed][:1]


def _ladder(profile: Profile, effort: Effort) -> list[_Sketch]:
    """Ever narrower feed-forward networks."""
    if not profile.ffn:
        return []
    ratios = (step * _STEP for step in range(1, 8))
    return [_pruned(profile, effort, ffn=ratio) for ratio in ratios]
