"""Data to compress with: texts, with or without labels, cut into parts that never mix.

A file holds one example a line: JSON (``{"text": …, "label": …}``) in a ``.jsonl``, a bare text in any other. Which
part an example falls into is decided by a hash of the example itself: adding lines moves no other, and a text that
stands in a file twice is never both trained on and judged by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from headrace.errors import CompressionDataError

__all__ = ["Examples", "Split", "read_examples", "split"]

_MOST_LINE_BYTES: Final = 1 << 20
_LEAST: Final = 8
"""Examples that each part must have."""
_SHARES: Final = {"validation": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Examples:
    """Examples of a task."""

    inputs: Sequence[Any]
    """Texts, or for a model that reads none, float32 tensors of one shape."""
    labels: Sequence[int] | None = None
    """The class of each, or None where data has no labels."""
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inputs)

    def take(self, places: Sequence[int]) -> Examples:
        """Those at the given places."""
        labels = None if self.labels is None else [self.labels[place] for place in places]
        return replace(self, inputs=[self.inputs[place] for place in places], labels=labels)

    def sample(self, count: int, *, seed: int) -> Examples:
        """Up to `count` of them, drawn without replacement."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count].tolist())


@dataclass(frozen=True)
class Split:
    """What stages may look at, and what only judges them."""

    train: Examples
    """For training and calibration."""
    validation: Examples
    """For choices: what to prune, when to stop, which candidate."""
    test: Examples
    """For the report and the gates, and for nothing else."""


def read_examples(path: str | Path) -> Examples:
    """The examples of a file.

    Raises:
        CompressionDataError: it cannot be read, a line is not an example, or only some have labels.
    """
    file = Path(path)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise CompressionDataError(f"{file} cannot be read: {error.strerror}") from None
    parse = _json_line if file.suffix == ".jsonl" else _text_line
    found = [parse(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise CompressionDataError(f"{file} holds no text")
    return _labelled(found, file)


def split(examples: Examples) -> Split:
    """Cut examples into 70 % to train with, 15 % to choose by and 15 % to judge by.

    Raises:
        CompressionDataError: there are too few.
    """
    places: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for place, value in enumerate(examples.inputs):
        places[_part_of(value)].append(place)
    for name, part in places.items():
        if len(part) < _LEAST:
            raise CompressionDataError(
                f"{len(examples)} examples leave {len(part)} for {name}, which needs {_LEAST}: give about 100 or more"
            )
    return Split(**{name: examples.take(part) for name, part in places.items()})


def _part_of(value: Any) -> str:
    content = value.encode("utf-8", "replace") if isinstance(value, str) else _bytes_of(value)
    at = int.from_bytes(hashlib.sha256(content).digest()[:8]) / 2**64
    if at < _SHARES["test"]:
        return "test"
    return "validation" if at < _SHARES["test"] + _SHARES["validation"] else "train"


def _bytes_of(value: Tensor) -> bytes:
    return bytes(value.detach().cpu().contiguous().numpy().tobytes())


def _json_line(line: bytes, where: str) -> tuple[str, str | None]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise CompressionDataError(f"{where} is not JSON: {error}") from None
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise CompressionDataError(f'{where} has no text: a line is {{"text": …}}, with a "label" or without')
    label = content.get("label")
    if label is not None and not isinstance(label, str | int):
        raise CompressionDataError(f"{where}: a label is a word or a whole number")
    return text, None if label is None else str(label)


def _text_line(line: bytes, where: str) -> tuple[str, str | None]:
    if len(line) > _MOST_LINE_BYTES:
        raise CompressionDataError(f"{where} is longer than {_MOST_LINE_BYTES:,} bytes")
    try:
        return line.decode("utf-8"), None
    except UnicodeDecodeError:
        raise CompressionDataError(f"{where} is not UTF-8") from None


def _labelled(found: Sequence[tuple[str, str | None]], file: Path) -> Examples:
    texts = [text for text, _ in found]
    given = [label for _, label in found if label is not None]
    if not given:
        return Examples(texts)
    if len(given) != len(found):
        raise CompressionDataError(
            f"{file}: {len(given)} of {len(found)} examples have a label; give one to all or none"
        )
    names = tuple(sorted(set(given)))
    return Examples(texts, [names.index(label) for label in given], names)
