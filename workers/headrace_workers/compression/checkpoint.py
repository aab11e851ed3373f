"""Subjects on disk: as artifacts, finished ones and those between two stages.

A checkpoint is an artifact with one more file, `checkpoint.json`, which says what it is the result of: a key that
covers the source, the data, the seed and every stage so far. What has another key, or is not whole, is not used.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from headrace.errors import ArtifactError, CompressionError
from headrace_workers.artifacts.artifact import Artifact, Source, Variant, VariantContent, open_artifact, write_artifact
from headrace_workers.compression.subject import Subject, TextSubject
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import ModelSource
from headrace_workers.models.tokenizer import serialized_tokenizer

__all__ = [
    "Record",
    "files_of",
    "full_disk_named",
    "open_checkpoint",
    "subject_of",
    "variant_name",
    "write_subject",
]

_RECORD: Final = "checkpoint.json"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_COPIED: Final = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


class Record(BaseModel):
    """What a checkpoint is the result of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    seconds: float
    notes: list[str]


# -- writing ------------------------------------------------------------------------------------------------


def write_subject(
    path: Path,
    subject: Subject,
    content: VariantContent,
    *,
    files: Mapping[str, bytes],
    source: Source,
    record: Record | None = None,
    lineage: list[str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Artifact:
    """Write a subject as an artifact of one variant, or as a checkpoint if it has a record.

    Args:
        path: a directory that must not exist yet.
        subject: whose task it is.
        content: its tensors.
        files: everything but the weights: see `files_of`.
        source: the model it was made of.
        record: what it is the result of.
        lineage: the steps that led here.
        metrics: figures worth keeping.

    Raises:
        CompressionError: the disk is full; nothing is left at `path`.
        ArtifactError: there is something at `path` already.
    """
    more = {} if record is None else {_RECORD: record.model_dump_json(indent=1).encode()}
    with full_disk_named(path.parent):
        return write_artifact(
            path,
            task=subject.task,
            source=source,
            files={**files, **more},
            variants={variant_name(content): content},
            lineage=lineage,
            metrics=metrics,
        )


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Give a full disk its name.

    Raises:
        CompressionError: instead of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CompressionError(
            f"there is no room left to write to {folder} ({error.strerror}); make room and run the same again: "
            "stages that are finished are kept, and nothing half-written is"
        ) from error


def files_of(subject: Subject, before: Subject) -> dict[str, bytes]:
    """Everything but the weights: configuration, tokenizer, pooling.

    Args:
        subject: what is written.
        before: the subject it was made of: if it has another configuration than that, it is written as it is now.
    """
    if not isinstance(subject, TextSubject):
        return {}
    files = _copied(subject.source)
    assert isinstance(before, TextSubject)
    if subject.source is before.source and subject.config is not before.config:
        files["config.json"] = str(subject.config.to_json_string()).encode()
    return files


def _copied(source: ModelSource) -> dict[str, bytes]:
    files = {name: (source.folder / name).read_bytes() for name in _COPIED if (source.folder / name).is_file()}
    files["tokenizer.json"] = serialized_tokenizer(source)
    for module in source.read_json("modules.json") or []:
        folder = str(module["path"])
        for name in ("config.json", "model.safetensors"):
            path = source.folder / folder / name
            if folder and path.is_file():
                files[f"{folder}/{name}"] = path.read_bytes()
    return files


def variant_name(content: VariantContent) -> str:
    """What a variant is called: by the fewest bits in which its linear layers are stored."""
    schemes = [scheme.partition("@")[0] for scheme in content.layers.values()]
    if affine := [scheme for scheme in schemes if scheme.startswith("affine")]:
        return f"int{min(int(scheme.removeprefix('affine')[0]) for scheme in affine)}"
    if schemes:
        return "int8"
    kinds = {str(tensor.dtype) for tensor in content.tensors.values() if tensor.is_floating_point()}
    return next((name for name, kind in _DTYPES.items() if kind in kinds), "fp32")


_DTYPES: Final = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}


# -- reading ------------------------------------------------------------------------------------------------


def open_checkpoint(path: Path, key: str) -> tuple[Artifact, Record] | None:
    """The checkpoint there, if it is whole and the result of what `key` stands for. Every file of it is hashed."""
    try:
        record = Record.model_validate_json((path / _RECORD).read_bytes())
        return (open_artifact(path), record) if record.key == key else None
    except (OSError, ValidationError, ArtifactError):
        return None


def subject_of(artifact: Artifact, original: Subject) -> Subject:
    """The subject that a checkpoint holds.

    Args:
        artifact: the checkpoint.
        original: the model as it came, which brings what no file holds: for a plain module, its code.

    Raises:
        ArtifactError: its tensors do not fit its configuration.
    """
    variant = artifact.variant()
    subject: Subject
    if isinstance(original, TextSubject):
        source = ModelSource(str(artifact.path), artifact.path, artifact)
        loaded = load_model(source, original.task, variant=variant.name)
        subject = TextSubject(loaded, source, max_tokens=original.max_tokens)
    else:
        subject = original.with_module(_custom(artifact, variant, original.module))
    subject.structure = variant.structure
    return subject


def _custom(artifact: Artifact, variant: Variant, skeleton: nn.Module) -> nn.Module:
    from headrace_workers.models.custom import load_custom

    return load_custom(artifact, lambda: copy.deepcopy(skeleton), variant=variant.name)
