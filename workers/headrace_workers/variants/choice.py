"""Between which variants a replica may change, and what each of them costs in quality and brings in speed.

The figures are those that the artifact's compression measured, or the owner's own. A name that the artifact does not
have, or a figure that nobody knows, is an error when the replica starts, not under overload.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from headrace.errors import ModelLoadError
from headrace.messages.rungs import Rung
from headrace_workers.artifacts.artifact import Artifact
from headrace_workers.models.source import ModelSource

__all__ = ["WantedVariant", "loading_bytes", "rungs_of"]

log = logging.getLogger("headrace.replica")

_DROP, _SPEEDUP = "metric_drop", "speedup"
_LEAST: Final = 2
_LOADING: Final = 4
"""What loading takes at most, against the files: tensors as they are stored, in full precision, and packed."""


class WantedVariant(NamedTuple):
    """A variant that a pool may run, as its owner named it."""

    name: str
    quality: float | None = None
    """In any unit in which more is better; None: what the artifact says."""
    speed: float | None = None
    """Likewise."""


def rungs_of(
    source: ModelSource, wanted: Sequence[WantedVariant], *, device: str, flags: Collection[str]
) -> tuple[Rung, ...]:
    """What a replica may run on this node, best quality first.

    Args:
        source: an artifact.
        wanted: which of its variants, best quality first; none: those of all that no other beats in both.
        device: `cpu` or `cuda`.
        flags: the processor's instruction sets, by the names of `headrace_workers.node.Capabilities`.

    Raises:
        ModelLoadError: it is no artifact, has fewer than two such variants, or they are not in that order.
        ArtifactError: it has no variant of a name that is wanted.
    """
    artifact = source.artifact
    if artifact is None:
        raise ModelLoadError(f"{source.name} is no artifact: only an artifact has variants to change between")
    named = wanted or [WantedVariant(name) for name in artifact.manifest.variants]
    able = [one for one in named if _runs_here(artifact, one.name, device, flags)]
    measured = [_measured(artifact, one) for one in able]
    rungs = _relative(measured if wanted else _front(measured))
    _check(source, rungs, [one.name for one in named])
    return rungs


def _runs_here(artifact: Artifact, name: str, device: str, flags: Collection[str]) -> bool:
    requires = artifact.variant(name).requires
    if requires.device in (device, "cpu") and (not requires.any_isa or set(requires.any_isa) & set(flags)):
        return True
    log.warning("variant %s of %s is made for other hardware, and is left out here", name, artifact.path)
    return False


def _measured(artifact: Artifact, wanted: WantedVariant) -> Rung:
    metrics = artifact.manifest.metrics
    drop = _metric(metrics, artifact, wanted.name, _DROP)
    quality = wanted.quality if wanted.quality is not None else None if drop is None else 1 - drop
    speed = wanted.speed if wanted.speed is not None else _metric(metrics, artifact, wanted.name, _SPEEDUP)
    if quality is None or speed is None:
        lacks = " and ".join(word for word, figure in (("quality", quality), ("speed", speed)) if figure is None)
        raise ModelLoadError(
            f"{artifact.path} does not say the {lacks} of its variant {wanted.name}; say it in adaptive.variants"
        )
    return Rung(wanted.name, quality, speed)


def _metric(metrics: Mapping[str, float], artifact: Artifact, variant: str, name: str) -> float | None:
    """A figure of a variant; of an artifact that has only one, figures are not named after it."""
    own = metrics.get(f"{variant}.{name}")
    return metrics.get(name) if own is None and artifact.manifest.variants == [variant] else own


def _front(rungs: Sequence[Rung]) -> list[Rung]:
    """Those that no other one is at least as good and as fast as."""

    def beaten(rung: Rung) -> bool:
        return any(
            other.quality >= rung.quality and other.speed >= rung.speed and other != rung
            for other in rungs
            if (other.quality, other.speed) != (rung.quality, rung.speed) or other.variant < rung.variant
        )

    return sorted((rung for rung in rungs if not beaten(rung)), key=lambda rung: rung.speed)


def _relative(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """Against the first."""
    if not rungs or rungs[0].quality <= 0 or rungs[0].speed <= 0:
        return tuple(rungs)
    best = rungs[0]
    return tuple(Rung(one.variant, one.quality / best.quality, one.speed / best.speed) for one in rungs)


def _check(source: ModelSource, rungs: Sequence[Rung], named: Sequence[str]) -> None:
    if len(rungs) < _LEAST:
        raise ModelLoadError(
            f"{source.name} leaves {len(rungs)} of its variants to change between on this node, of {', '.join(named)}:"
            " adaptive needs two, each faster than the one before"
        )
    for before, after in pairwise(rungs):
        if after.speed <= before.speed or after.quality > before.quality:
            raise ModelLoadError(
                f"adaptive.variants must go from the best to the fastest: {after.variant} is"
                f" {after.speed / before.speed:.2f} times as fast as {before.variant} before it,"
                f" with {after.quality / before.quality:.3f} times its quality"
            )


def loading_bytes(source: ModelSource, variant: str, *, cache_bytes: int) -> int:
    """Memory that loading a variant may take beside what runs.

    Args:
        source: an artifact that has it.
        variant: its name.
        cache_bytes: what its engine keeps for keys and values.
    """
    assert source.artifact is not None, "rungs_of has seen to that"
    files = source.artifact.manifest.files
    blobs = set(source.artifact.variant(variant).tensors.values())
    return _LOADING * sum(files[blob].bytes for blob in blobs) + cache_bytes
