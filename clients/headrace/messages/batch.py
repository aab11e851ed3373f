"""What a router sends to a replica, and what it hears back: one message each way for a whole batch.

A replica that generates ends jobs one by one, and tells of each as it ends: many small messages back. All of them are
msgpack arrays of plain values, packed once: payloads pass through as the bytes they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

from headrace.codec import pack, unpack
from headrace.errors import DecodeError
from headrace.messages.lane import LaneEntry

__all__ = ["Batch", "BatchOutcome", "Fate", "JobOutcomes"]


class Fate(IntEnum):
    """What became of one job of a batch."""

    ANSWERED = 0
    """Its terminal entry was written by this replica."""
    LATE = 1
    """Somebody had answered it before; this replica's answer was dropped."""
    RETURNED = 2
    """It was not answered, and it is not this job's fault: the router may dispatch it again."""
    DELAYED = 3
    """It failed, and was handed back for another attempt later."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of one model, to be run together. `now_ms` is the Redis server's clock at dispatch."""

    model: str
    now_ms: int
    entries: Sequence[LaneEntry]
    alone: bool = False
    """Whether nothing else may run on the replica meanwhile."""

    def to_bytes(self) -> bytes:
        """The packed message."""
        return pack([self.model, self.now_ms, self.entries, self.alone])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a packed message.

        Raises:
            DecodeError: it is not one.
        """
        model, now_ms, entries, alone = _array(data, [str, int, list, bool])
        return cls(model, now_ms, [_entry(entry) for entry in entries], alone)


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The fate of every job of a batch, in its order, and what the router learns its costs from."""

    fates: Sequence[int]
    """`Fate` values."""
    tokens: Sequence[int]
    """Units of work each job turned out to be (tokens, where the engine has them); 0 if it never ran."""
    run_s: float
    """Seconds the engine spent on the batch."""

    def to_bytes(self) -> bytes:
        """The packed message."""
        return pack([self.fates, self.tokens, self.run_s])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a packed message.

        Raises:
            DecodeError: it is not one.
        """
        fates, tokens, run_s = _array(data, [list, list, float])
        if len(fates) != len(tokens) or any(type(number) is not int for number in (*fates, *tokens)):
            raise DecodeError("an outcome has a fate and a number of tokens for each job")
        return cls(fates, tokens, run_s)


@dataclass(frozen=True, slots=True)
class JobOutcomes:
    """Which jobs of a batch have ended since the last of these. Without any it is a sign of life."""

    numbers: Sequence[int]
    """Their places in the batch, from 0."""
    fates: Sequence[int]
    """`Fate` values, one for each."""
    tokens: Sequence[int]
    """Tokens that each took, prompt and answer together; 0 if it never ran."""
    computed: bool
    """Whether the replica's engine has done a step since it has this batch."""

    def to_bytes(self) -> bytes:
        """The packed message."""
        return pack([self.numbers, self.fates, self.tokens, self.computed])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a packed message.

        Raises:
            DecodeError: it is not one.
        """
        numbers, fates, tokens, computed = _array(data, [list, list, list, bool])
        if not len(numbers) == len(fates) == len(tokens):
            raise DecodeError("each job that ended has a fate and a number of tokens")
        if any(type(number) is not int for number in (*numbers, *fates, *tokens)):
            raise DecodeError("jobs, fates and tokens are whole numbers")
        return cls(numbers, fates, tokens, computed)


def _array(data: bytes, kinds: list[type]) -> list[Any]:
    body = unpack(data)
    if not isinstance(body, list) or [type(part) for part in body] != kinds:
        raise DecodeError(f"expected an array of {', '.join(kind.__name__ for kind in kinds)}")
    return body


_ENTRY: Final = [int, str, bytes, bytes]


def _entry(value: Any) -> LaneEntry:
    if not isinstance(value, list) or [type(part) for part in value] != _ENTRY:
        raise DecodeError("an entry of a batch is its lane, its id, its envelope and its payload")
    return LaneEntry(*value)
