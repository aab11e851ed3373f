"""Describing artifacts: one by itself, and two by what sets them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace_workers.artifacts.artifact import Artifact, Variant
from headrace_workers.kernels.schemes import parse_scheme
from headrace_workers.kernels.weights import AffineWeight

__all__ = ["compare_artifacts", "describe_artifact"]

Pair = tuple[Any, Any]
"""What the one has and what the other has; None: it has none."""


def describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """What an artifact says of itself, as plain data.

    Raises:
        ArtifactError: a variant cannot be read.
    """
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.path),
        "task": manifest.task,
        "source": manifest.source.name,
        "source_sha256": manifest.source.sha256,
        "created_at": manifest.created_at,
        "tools": manifest.tools,
        "lineage": manifest.lineage,
        "metrics": manifest.metrics,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "variants": [_described(artifact, artifact.variant(name)) for name in manifest.variants],
    }


def _described(artifact: Artifact, variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "requires": variant.requires.model_dump(),
        "bytes": sum(artifact.manifest.files[blob].bytes for blob in set(variant.tensors.values())),
        "parameters": sum(tensor.numel() for tensor in artifact.tensors(variant).values()),
        "schemes": dict(Counter(variant.layers.values())),
        "layers": variant.layers,
        "structure": variant.structure.model_dump(),
    }


def compare_artifacts(one: Artifact, other: Artifact) -> dict[str, dict[str, Any]]:
    """What sets two artifacts apart, by name; empty where nothing does.

    Returns:
        `manifest`, `metrics`, `file_bytes`, `schemes` (of modules) and `weight_shapes` hold pairs: what the one and the
        other have, None for nothing. `weight_distances` holds ‖a − b‖ / ‖a‖ of dequantized weights, the farthest first.

    Raises:
        ArtifactError: a variant cannot be read.
    """
    sides = [_Side(artifact) for artifact in (one, other)]
    return {
        "manifest": _differences(*(_head(artifact) for artifact in (one, other))),
        "metrics": _differences(one.manifest.metrics, other.manifest.metrics),
        "file_bytes": _differences(*(side.files for side in sides)),
        "schemes": _differences(*(side.schemes for side in sides)),
        "weight_shapes": _differences(*({name: list(w.shape) for name, w in side.weights.items()} for side in sides)),
        "weight_distances": _distances(*(side.weights for side in sides)),
    }


class _Side:
    """One of two artifacts, by what its first variant is made of."""

    def __init__(self, artifact: Artifact) -> None:
        variant = artifact.variant()
        self.files = {path: entry.bytes for path, entry in artifact.manifest.files.items()}
        self.schemes = variant.layers
        self.weights = _dequantized(variant, artifact.tensors(variant))


def _dequantized(variant: Variant, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights in float32; of a quantized module `weight` stands for its codes and scales together."""
    weights = dict(tensors)
    for path, text in variant.layers.items():
        scheme = parse_scheme(text)
        if scheme.table:  # it has none of its own
            continue
        codes, scale = weights.pop(f"{path}.weight"), weights.pop(f"{path}.weight_scale")
        zero = weights.pop(f"{path}.weight_zero", None)
        if scheme.kind == "affine":
            weight = AffineWeight(codes, scale, zero, None, bits=scheme.bits, group=scheme.group).dequantized()
        else:
            weight = codes.float() * scale[:, None]
        weights[f"{path}.weight"] = weight
    return {name: tensor.float() for name, tensor in weights.items()}


def _distances(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    apart = [name for name in shared if not torch.equal(one[name], other[name])]
    found = {name: float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-12)) for name in apart}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _head(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "task": manifest.task,
        "source": manifest.source.sha256,
        "variants": manifest.variants,
        "lineage": manifest.lineage,
        "tools": manifest.tools,
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name), other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
