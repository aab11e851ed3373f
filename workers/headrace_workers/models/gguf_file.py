"""Reading a GGUF file: what it says of itself, and its tensors as float32.

The `gguf` package's own reader follows lengths beyond the end of a file, and takes seconds for a vocabulary. This one
checks every length against what is there before it takes anything; the numbers behind a quantized block are the
package's work.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelLoadError

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

_MOST_HEADER_BYTES: Final = 256 << 20
"""A vocabulary of 256,000 tokens with its merges takes 20 MiB."""
_MOST_DIMENSIONS: Final = 4
_VERSIONS: Final = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of `struct` by GGUF's number of a type."""


class _BrokenError(Exception):
    """Something in the file is not as the format wants it."""


class GgufTensor(NamedTuple):
    """Where a tensor lies and how it is stored."""

    shape: tuple[int, ...]
    """As torch orders it: the last dimension lies together."""
    kind: int
    """A `gguf.GGMLQuantizationType`."""
    start: int
    """First byte in the file."""
    size_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, its header read and checked."""

    path: Path
    metadata: dict[str, Any]
    """Numbers, strings, booleans, and lists of one of them."""
    tensors: dict[str, GgufTensor]

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, dequantized.

        Raises:
            ModelLoadError: it is stored in a way that the package `gguf` cannot undo.
        """
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, tensor.size_bytes, offset=tensor.start)
        kind = GGMLQuantizationType(tensor.kind)
        try:
            values: NDArray[np.float32] = dequantize(raw.reshape(prod(tensor.shape[:-1]), -1), kind)
        except NotImplementedError:
            raise ModelLoadError(f"{self.path}: {name} is stored as {kind.name}, which is not read") from None
        return values.reshape(tensor.shape)


class _Cursor:
    """Goes through a header; what would reach beyond its end is refused before it is taken."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        self._content, self._size = content, size
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > min(self._size, _MOST_HEADER_BYTES) - self.at:
            raise _BrokenError(f"something of {count:,} bytes at byte {self.at:,} does not fit into it")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _BrokenError(f"the string before byte {self.at:,} is not UTF-8") from None

    def value(self) -> Any:
        kind = self.number("I")
        return self._array() if kind == _ARRAY else self._single(kind)

    def _single(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        raise _BrokenError(f"a value before byte {self.at:,} has the unknown type {kind}")

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(f"<{form}"))))
        return [self._single(kind) for _ in range(count)]


def read_gguf(path: str | Path) -> GgufFile:
    """Read and check a file's header.

    Raises:
        ModelLoadError: it cannot be read, is not GGUF, is cut off, or contradicts itself; or the package `gguf` is
            missing.
    """
    _check_package()
    file = Path(path)
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parsed(file, _Cursor(content, len(content)), len(content))
    except (_BrokenError, OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelLoadError(f"{file} is not a whole GGUF file: {error}") from None


def _check_package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelLoadError("reading GGUF takes the package gguf: pip install gguf") from None


def _parsed(file: Path, cursor: _Cursor, size: int) -> GgufFile:
    if cursor.take(4) != b"GGUF":
        raise _BrokenError("it does not begin with GGUF")
    if (version := cursor.number("I")) not in _VERSIONS:
        raise _BrokenError(f"it is of version {version}; little-endian files of versions 2 and 3 are read")
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        name = cursor.string()
        metadata[name] = cursor.value()
    entries = {}
    for _ in range(tensor_count):
        name, entry = _entry(cursor)
        entries[name] = entry
    start = _aligned(cursor.at, metadata.get("general.alignment", 32))
    return GgufFile(file, metadata, {name: _placed(name, *entry, start, size) for name, entry in entries.items()})


def _entry(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """A tensor's name, and its shape, type and place among the data."""
    name, dimensions = cursor.string(), cursor.number("I")
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise _BrokenError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, (shape, cursor.number("I"), cursor.number("Q"))


def _aligned(at: int, alignment: Any) -> int:
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _BrokenError(f"its alignment is {alignment!r}")
    return -(-at // alignment) * alignment


def _placed(name: str, shape: tuple[int, ...], kind: int, offset: int, data_start: int, size: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _BrokenError(f"tensor {name!r} is of the unknown type {kind}") from None
    if prod(shape) == 0 or shape[-1] % block:
        raise _BrokenError(f"tensor {name!r} of shape {list(shape)} is not made of blocks of {block}")
    size_bytes, start = prod(shape) // block * block_bytes, data_start + offset
    if start + size_bytes > size:
        raise _BrokenError(f"tensor {name!r} ends at byte {start + size_bytes:,} of {size:,}")
    return GgufTensor(shape, kind, start, size_bytes)
