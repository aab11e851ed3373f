"""Which variant of an artifact a node runs: the first that is made for its hardware, in the artifact's own order."""

from __future__ import annotations

from collections.abc import Collection

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Artifact, Requires

__all__ = ["fitting_variant"]


def fitting_variant(artifact: Artifact, *, device: str, flags: Collection[str]) -> str:
    """The name of a variant that runs here. An artifact lists them best first, as they were measured.

    Args:
        artifact: one or more variants.
        device: `cpu` or `cuda`. A GPU takes a processor's variant where there is none of its own.
        flags: the processor's instruction sets, by the names of `headrace_workers.node.Capabilities`.

    Raises:
        ArtifactError: each asks for something that this node has not; the message names it.
    """
    wants = {name: artifact.variant(name).requires for name in artifact.manifest.variants}
    for devices in ((device,), ("cpu",)):
        for name, requires in wants.items():
            if requires.device in devices and (not requires.any_isa or set(requires.any_isa) & set(flags)):
                return name
    asked = "; ".join(f"{name} needs {_told(requires)}" for name, requires in wants.items())
    raise ArtifactError(f"{artifact.path} has no variant for this node: {asked}")


def _told(requires: Requires) -> str:
    return " or ".join(requires.any_isa) if requires.device == "cpu" else f"a GPU ({requires.device})"
