"""Models that are none of transformers': an artifact holds their weights, and whoever loads them brings the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from headrace.errors import ArtifactError, ModelLoadError
from headrace_workers.artifacts.artifact import Artifact, Variant, open_artifact
from headrace_workers.kernels.layers import prepare_layers
from headrace_workers.kernels.selection import KernelTable, Policy
from headrace_workers.models.filling import fill
from headrace_workers.models.structure import apply_structure

__all__ = ["load_custom"]


def load_custom(
    artifact: Artifact | str | Path,
    factory: Callable[[], nn.Module],
    *,
    variant: str | None = None,
    kernels: Policy | None = None,
) -> nn.Module:
    """Load a model of the task `custom`.

    Args:
        artifact: where it is, or the artifact opened already.
        factory: makes the module as it was before it was compressed, with any weights. An artifact never names code:
            to import what a file names is to run what its author wrote.
        variant: which; None: the artifact's first.
        kernels: how kernels are chosen for quantized layers; None: not yet, so that the module can be changed on.

    Raises:
        ArtifactError: the artifact is broken, or does not fit what the factory makes.
        ModelLoadError: it is of another task.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    if opened.manifest.task != "custom":
        raise ModelLoadError(
            f"{opened.path} was made for {opened.manifest.task}; load it by its path, without a factory"
        )
    module = _filled(opened, factory(), opened.variant(variant))
    if kernels is not None:
        prepare_layers(module, KernelTable(kernels))
    return module.eval().requires_grad_(False)


def _filled(artifact: Artifact, module: nn.Module, variant: Variant) -> nn.Module:
    tensors = artifact.tensors(variant)
    try:
        apply_structure(module, variant.structure, tensors)
        left = fill(module, variant, tensors)
    except (KeyError, AttributeError, RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"{artifact.path}: variant {variant.name} does not fit what the factory makes: {error}"
        ) from error
    if strangers := sorted(left.missing) + sorted(left.unexpected):
        raise ArtifactError(
            f"{artifact.path}: variant {variant.name} and what the factory makes differ by {strangers[0]}"
        )
    return module
