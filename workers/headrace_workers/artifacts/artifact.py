"""Artifacts: a compressed model and all it needs, in one directory that proves its own integrity.

::

    manifest.json                     what it is, where it comes from, and the SHA-256 of every other file
    config.json, tokenizer.json, …    as Hugging Face writes them
    blobs/sha256-<hex>.safetensors    tensors, shared between variants, named by their content
    variants/<name>.json              which tensors make up one form of the model, and what it needs to run

There is no pickle in it and nothing is ever unpickled. It is written beside its place and renamed into it, so that
what is there is whole. Opening it verifies every file; what the manifest does not list must not be there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from headrace.errors import ArtifactError, ArtifactTamperedError
from headrace_workers.artifacts.blobs import Stored, divided
from headrace_workers.artifacts.schema import (
    SCHEMA_VERSION,
    Encoding,
    FileEntry,
    Manifest,
    Requires,
    Source,
    Structure,
    Task,
    Variant,
)

if TYPE_CHECKING:  # who only looks for a model need not wait for torch
    from torch import Tensor

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "Encoding",
    "FileEntry",
    "Manifest",
    "Requires",
    "Source",
    "Structure",
    "Task",
    "Variant",
    "VariantContent",
    "is_artifact",
    "open_artifact",
    "write_artifact",
]

_MANIFEST: Final = "manifest.json"
_MOST_MANIFEST_BYTES: Final = 16 << 20

Part = TypeVar("Part", bound=BaseModel)


@dataclass(frozen=True)
class VariantContent:
    """A variant to be written: its tensors, and the scheme of each compressed module."""

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, str]
    structure: Structure = field(default_factory=Structure)
    requires: Requires = field(default_factory=Requires)
    bits: Mapping[str, int] = field(default_factory=dict)
    """For tensors of codes, uint8 and each below 2^bits, how many bits these are."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact."""

    path: Path
    manifest: Manifest

    def variant(self, name: str | None = None) -> Variant:
        """One of its variants; None: the first.

        Raises:
            ArtifactError: it has no such variant.
        """
        name = self.manifest.variants[0] if name is None else name
        if name not in self.manifest.variants:
            raise ArtifactError(f"{self.path} has no variant {name!r}; it has {', '.join(self.manifest.variants)}")
        return _parsed(Variant, self.path / "variants" / f"{name}.json")

    def tensors(self, variant: Variant) -> dict[str, Tensor]:
        """All tensors of a variant, decoded.

        Raises:
            ArtifactError: a blob does not hold what the variant says.
        """
        from headrace_workers.compression.encodings import decoded

        found: dict[str, Tensor] = {}
        for blob in sorted(set(variant.tensors.values())):
            held = self._held(variant, blob)
            for name in [name for name, where in variant.tensors.items() if where == blob]:
                try:
                    found[name] = decoded(name, variant.encodings.get(name), held)
                except KeyError as error:
                    raise ArtifactError(f"{self.path / blob} does not hold {error.args[0]}") from None
                except (ValueError, IndexError, RuntimeError) as error:
                    raise ArtifactError(f"{self.path / blob}: {name} cannot be decoded: {error}") from None
        return found

    def _held(self, variant: Variant, blob: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if blob not in self.manifest.files:
            raise ArtifactError(f"variant {variant.name} of {self.path} names {blob}, which is not in the manifest")
        try:
            return load_file(self.path / blob)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.path / blob} cannot be read: {error}") from error


def is_artifact(path: str | Path) -> bool:
    """Whether a directory claims to be an artifact. `open_artifact` finds out whether that is true."""
    return (Path(path) / _MANIFEST).is_file()


def open_artifact(path: str | Path) -> Artifact:
    """Verify every file of an artifact and open it.

    Raises:
        ArtifactTamperedError: a file is missing, changed, or not in the manifest; the message names it.
        ArtifactError: there is no artifact, or it is of a schema that this code does not know.
    """
    root = Path(path)
    manifest = _read_manifest(root / _MANIFEST)
    for relative, entry in manifest.files.items():
        _verify(_confined(root, relative), entry)
    present = {found.relative_to(root).as_posix() for found in root.rglob("*") if not found.is_dir()}
    if strangers := sorted(present - set(manifest.files) - {_MANIFEST}):
        raise ArtifactTamperedError(f"{root / strangers[0]} is not in the manifest")
    return Artifact(root, manifest)


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise ArtifactError(f"{path.parent} is not an artifact: it has no {_MANIFEST}")
    if path.stat().st_size > _MOST_MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than a manifest can be")
    try:
        version = json.loads(path.read_bytes()).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a manifest: {error}") from None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} is of schema version {version!r}; this code reads version {SCHEMA_VERSION}. "
            "Upgrade headrace, or compress the model again"
        )
    return _parsed(Manifest, path)


def _parsed(kind: type[Part], path: Path) -> Part:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ArtifactError(f"{path} is not valid: {where}: {first['msg']}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


def _confined(root: Path, relative: str) -> Path:
    """The file `relative`, which must lie in `root` itself and not by way of a link."""
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or str(pure) != relative or relative == _MANIFEST:
        raise ArtifactError(f"{root / _MANIFEST} names {relative!r}, which is not a plain path inside the artifact")
    path = root / relative
    if not path.is_file():
        raise ArtifactTamperedError(f"{path} is missing")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ArtifactTamperedError(f"{path} is a link out of the artifact")
    return path


def _verify(path: Path, entry: FileEntry) -> None:
    size = path.stat().st_size
    if size != entry.bytes:
        raise ArtifactTamperedError(f"{path} has {size:,} bytes; the manifest says {entry.bytes:,}")
    if sha256_of(path) != entry.sha256:
        raise ArtifactTamperedError(f"{path} is not the file that the manifest describes: its SHA-256 differs")


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def write_artifact(
    path: str | Path,
    *,
    task: Task,
    source: Source,
    files: Mapping[str, bytes],
    variants: Mapping[str, VariantContent],
    lineage: list[str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Artifact:
    """Write an artifact: all of it appears at `path`, or nothing.

    Args:
        path: a directory that must not exist yet.
        task: what the model does.
        source: what was compressed.
        files: Hugging Face's files (config, tokenizer, pooling), by their path in the artifact.
        variants: what to store, by name.
        lineage: the steps that led here.
        metrics: figures worth keeping.

    Raises:
        ArtifactError: there is something at `path` already.
    """
    target = Path(path)
    if target.exists():
        raise ArtifactError(f"{target} exists; an artifact never changes, so write it to another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    draft.mkdir()
    try:
        for relative, content in files.items():
            _write(draft / relative, content)
        for name, variant in _written_variants(draft, variants).items():
            _write(draft / "variants" / f"{name}.json", _json(variant))
        _write(draft / _MANIFEST, _json(_manifest(draft, task, source, list(variants), lineage or [], metrics or {})))
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(target.parent)
    return open_artifact(target)


def _written_variants(draft: Path, contents: Mapping[str, VariantContent]) -> dict[str, Variant]:
    """Write the tensors of all variants; returns where each variant's are."""
    from safetensors.torch import save

    from headrace_workers.compression.encodings import encoded, stored_names

    stored: dict[str, Stored] = {}
    for name, content in contents.items():
        parts, encodings = encoded(content)
        names = {tensor: stored_names(tensor, encodings.get(tensor)) for tensor in content.tensors}
        stored[name] = Stored(parts, encodings, names)
    places: dict[str, dict[str, str]] = {name: {} for name in contents}
    for sharing, parts in divided(stored):
        blob = save(dict(parts))
        where = f"blobs/sha256-{hashlib.sha256(blob).hexdigest()}.safetensors"
        _write(draft / where, blob)
        for name, tensors in sharing.items():
            places[name] |= dict.fromkeys(tensors, where)
    return {name: _described(name, content, stored[name], places[name]) for name, content in contents.items()}


def _described(name: str, content: VariantContent, stored: Stored, places: Mapping[str, str]) -> Variant:
    return Variant(
        name=name,
        layers=dict(content.layers),
        tensors=dict(sorted(places.items())),
        encodings=dict(stored.encodings),
        structure=content.structure,
        requires=content.requires,
    )


def _manifest(
    draft: Path, task: Task, source: Source, variants: list[str], lineage: list[str], metrics: Mapping[str, float]
) -> Manifest:
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    files = {
        path.relative_to(draft).as_posix(): FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    }
    return Manifest(
        task=task,
        source=source,
        lineage=lineage,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        tools=_tools(),
        variants=variants,
        metrics=dict(metrics),
        files=files,
    )


def _tools() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("headrace", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _json(part: BaseModel) -> bytes:
    content: dict[str, Any] = part.model_dump(mode="json")
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
