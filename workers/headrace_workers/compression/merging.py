"""Several artifacts of one model as one, with all their variants: each node then takes the form that suits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Artifact, Variant, VariantContent, open_artifact, write_artifact

__all__ = ["merge_artifacts"]

_OWN: Final = ("reports/", "recipe.json")
"""Files that tell of one variant, and are kept under its name."""
_TENSORS: Final = ("blobs/", "variants/")


def merge_artifacts(paths: Sequence[str | Path], output: str | Path) -> Artifact:
    """Write an artifact with the variants of several, those of the first one first. What they share is stored once.

    Args:
        paths: two artifacts or more, made of one model for one task.
        output: a directory that must not exist yet.

    Raises:
        ArtifactError: they are not of one model, or two of them have a variant of one name.
    """
    artifacts = [open_artifact(path) for path in paths]
    if len(artifacts) < 2:
        raise ArtifactError("merging takes two artifacts or more")
    first = artifacts[0].manifest
    files: dict[str, bytes] = {}
    variants: dict[str, VariantContent] = {}
    for artifact in artifacts:
        _check_of_one_model(artifact, artifacts[0])
        for name in artifact.manifest.variants:
            if name in variants:
                raise ArtifactError(f"{artifact.path} has a variant {name!r}, and so has one before it")
            variants[name] = _content(artifact, artifact.variant(name))
        _add_files(files, artifact)
    return write_artifact(
        output,
        task=first.task,
        source=first.source,
        files=files,
        variants=variants,
        lineage=[
            f"{artifact.manifest.variants[0]}: {step}" for artifact in artifacts for step in artifact.manifest.lineage
        ],
        metrics={
            f"{artifact.manifest.variants[0]}.{name}": value
            for artifact in artifacts
            for name, value in artifact.manifest.metrics.items()
        },
    )


def _check_of_one_model(artifact: Artifact, first: Artifact) -> None:
    if (artifact.manifest.source.sha256, artifact.manifest.task) != (first.manifest.source.sha256, first.manifest.task):
        raise ArtifactError(f"{artifact.path} was made of another model, or for another task, than {first.path}")


def _content(artifact: Artifact, variant: Variant) -> VariantContent:
    bits = {name: encoding.bits for name, encoding in variant.encodings.items() if encoding.kind == "bits"}
    return VariantContent(
        artifact.tensors(variant), variant.layers, structure=variant.structure, requires=variant.requires, bits=bits
    )


def _add_files(files: dict[str, bytes], artifact: Artifact) -> None:
    for relative in artifact.manifest.files:
        if relative.startswith(_TENSORS):
            continue
        content = (artifact.path / relative).read_bytes()
        if relative.startswith(_OWN):
            files[f"reports/{artifact.manifest.variants[0]}/{Path(relative).name}"] = content
        elif files.setdefault(relative, content) != content:
            raise ArtifactError(f"{artifact.path} has another {relative} than those before it: its shape differs")
