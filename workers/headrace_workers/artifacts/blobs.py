"""How the tensors of several variants are divided into files, so that what variants share is stored once.

Tensors that the same variants hold, bit for bit, go into one file, which is named by its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from headrace_workers.artifacts.schema import Encoding

__all__ = ["Stored", "divided"]


class Stored(NamedTuple):
    """The tensors of a variant as files will hold them."""

    parts: Mapping[str, Tensor]
    """By the name under which a file holds each."""
    encodings: Mapping[str, Encoding]
    """Of tensors that are not stored as they are, by their own names."""
    names: Mapping[str, list[str]]
    """For each tensor of the variant, of which parts it is made."""


def divided(variants: Mapping[str, Stored]) -> Iterator[tuple[dict[str, set[str]], dict[str, Tensor]]]:
    """The files: for each, which tensors of which variants it has, and its parts."""
    owners: dict[tuple[str, str], list[str]] = {}
    for variant, stored in variants.items():
        for name, parts in stored.names.items():
            owners.setdefault((name, _digest(stored, parts)), []).append(variant)
    files: dict[tuple[str, ...], set[str]] = {}
    for (name, _), holders in owners.items():
        files.setdefault(tuple(holders), set()).add(name)
    for sharing, names in files.items():
        one = variants[sharing[0]]
        held = {part: one.parts[part] for name in one.names if name in names for part in one.names[name]}
        yield dict.fromkeys(sharing, names), held


def _digest(stored: Stored, parts: list[str]) -> str:
    import torch

    digest = hashlib.sha256()
    for part in parts:
        tensor = stored.parts[part].contiguous()
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
