"""What an artifact's descriptions look like: the manifest, and the variants that it lists.

Nothing is taken from a file but what stands here: an unknown key or a value of another type is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "SCHEMA_VERSION",
    "Encoding",
    "FileEntry",
    "Manifest",
    "Requires",
    "Source",
    "Structure",
    "Task",
    "Variant",
]

SCHEMA_VERSION: Final = 1

Task = Literal["embedding", "sequence_classification", "token_classification", "causal_lm", "custom"]
"""`custom` is a torch module that is none of transformers': whoever loads it brings the code."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file, by its content."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Source(_Part):
    """The model that was compressed."""

    name: str
    """A path or hub id, for people."""
    sha256: Sha256
    """Of its weights."""


class Manifest(_Part):
    """What an artifact says of itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: Task
    source: Source
    lineage: list[str] = []
    """The steps that led from the source to this, first step first."""
    created_at: str
    tools: dict[str, str] = {}
    """Versions of what made it."""
    variants: list[Name]
    metrics: dict[str, float] = {}
    files: dict[str, FileEntry]
    """Every file but the manifest, by its path from the artifact's directory."""


class Requires(_Part):
    """What a variant needs of a node."""

    device: Literal["cpu", "cuda"] = "cpu"
    any_isa: list[str] = []
    """At least one of these instruction sets; empty: none in particular."""


class Structure(_Part):
    """How a variant's modules differ from what `config.json` makes of them. Widths are those of its tensors."""

    layers: dict[str, list[int]] = {}
    """For a list of blocks, by its module name, which of its blocks are left, in order."""
    attributes: dict[str, dict[str, int]] = {}
    """For modules, by name, numbers that their code goes by: heads, widths."""
    pruned: list[str] = []
    """Modules in whose weights zeros are meant, and stay zeros when it is trained."""


class Encoding(_Part):
    """How a tensor is stored, where that is not as it is."""

    kind: Literal["bits", "bitmask"]
    """`bits`: unsigned numbers of `bits` bits, packed row by row. `bitmask`: a bit for each element that is not zero,
    held as `<name>.bitmask`, and those elements, held as `<name>.nonzero`."""
    shape: list[Annotated[int, Field(ge=0, le=1 << 31)]]
    bits: Annotated[int, Field(ge=1, le=8)] = 8


class Variant(_Part):
    """One form of the model."""

    name: Name
    layers: dict[str, str]
    """Modules that are compressed, and how (`headrace_workers.kernels.schemes`); all others are plain."""
    tensors: dict[str, str]
    """Tensor name to the blob file that holds it, under that name or as its encoding says."""
    encodings: dict[str, Encoding] = {}
    """Tensors that are not stored as they are, by name."""
    structure: Structure = Structure()
    requires: Requires = Requires()
