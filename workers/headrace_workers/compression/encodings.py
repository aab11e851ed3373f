"""Tensors as files hold them: codes packed into their bits, and tensors that are mostly zeros without the zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from headrace_workers.artifacts.artifact import Encoding, VariantContent
from headrace_workers.compression.quantization.packing import (
    from_bitmask,
    nonzero,
    pack,
    packed_bytes,
    to_bitmask,
    unpack,
)

__all__ = ["decoded", "encoded", "stored_names"]

_PARTS: Final = ("bitmask", "nonzero")
"""What a tensor stored as a bitmask is made of; each is held under its name and this."""
_NAMING_BYTES: Final = 256
"""About what a file's header and a variant's description need for them."""


def encoded(content: VariantContent) -> tuple[dict[str, Tensor], dict[str, Encoding]]:
    """The tensors of a variant as a file will hold them, and how to read those that are not stored as they are.

    Raises:
        ValueError: a tensor of codes has one that needs more bits than it is said to.
    """
    stored: dict[str, Tensor] = {}
    encodings: dict[str, Encoding] = {}
    for name, tensor in content.tensors.items():
        if content.bits.get(name, 8) < 8:
            encodings[name] = Encoding(kind="bits", shape=list(tensor.shape), bits=content.bits[name])
            stored[name] = pack(tensor, content.bits[name])
        elif _is_smaller_as_bitmask(tensor):
            encodings[name] = Encoding(kind="bitmask", shape=list(tensor.shape))
            stored |= dict(zip(stored_names(name, encodings[name]), to_bitmask(tensor), strict=True))
        else:
            stored[name] = tensor.detach().contiguous()
    return stored, encodings


def stored_names(name: str, encoding: Encoding | None) -> list[str]:
    """Under which names a file holds a tensor."""
    return [f"{name}.{part}" for part in _PARTS] if encoding and encoding.kind == "bitmask" else [name]


def decoded(name: str, encoding: Encoding | None, held: Mapping[str, Tensor]) -> Tensor:
    """A tensor as it was before it was stored.

    Args:
        name: the tensor's.
        encoding: how it is stored; None: as it is.
        held: all that the file holds.

    Raises:
        KeyError: the file does not hold it.
        ValueError: what it holds does not fit the encoding.
    """
    parts = [held[stored] for stored in stored_names(name, encoding)]
    if encoding is None:
        return parts[0]
    if parts[0].dtype != torch.uint8:
        raise ValueError(f"{name} is of {parts[0].dtype}, and packed bits are bytes")
    if encoding.kind == "bitmask":
        return from_bitmask(parts[0], parts[1], encoding.shape)
    *leading, columns = encoding.shape
    if list(parts[0].shape) != [*leading, packed_bytes(columns, encoding.bits)]:
        raise ValueError(f"{name} of {list(parts[0].shape)} bytes is no {encoding.shape} of {encoding.bits} bits")
    return unpack(parts[0], encoding.bits, columns)


def _is_smaller_as_bitmask(tensor: Tensor) -> bool:
    size = tensor.element_size()
    dense = tensor.numel() * size
    if dense <= _NAMING_BYTES or size not in (1, 2, 4, 8):
        return False
    return math.ceil(tensor.numel() / 8) + int(nonzero(tensor).sum()) * size + _NAMING_BYTES < dense
