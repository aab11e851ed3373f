"""What a replica that hosts several models adds to each message: which of them it has loaded.

A router sends a model's batches where the model is loaded already. It knows of what it sent itself; what other
routers' batches did to a replica, and what had to make room, only the replica can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from headrace.codec import pack, unpack
from headrace.errors import DecodeError

__all__ = ["HostReply", "LoadedModel"]


class LoadedModel(NamedTuple):
    """A model that a replica has loaded."""

    name: str
    bytes: int
    """Memory that is set aside for it."""
    load_s: float
    """Seconds it took to load."""
    ran_s: float
    """Seconds that its jobs have run here since the replica started."""


@dataclass(frozen=True, slots=True)
class HostReply:
    """A message of a replica, and the state of its memory."""

    message: bytes
    """A packed `BatchOutcome`, or `JobOutcomes`."""
    memory_bytes: int
    """For all models together."""
    loaded: Sequence[LoadedModel]
    """The one that was used last comes last."""

    def to_bytes(self) -> bytes:
        """The packed message."""
        return pack([self.message, self.memory_bytes, [list(model) for model in self.loaded]])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a packed message.

        Raises:
            DecodeError: it is not one.
        """
        body = unpack(data)
        if not isinstance(body, list) or [type(part) for part in body] != [bytes, int, list]:
            raise DecodeError("a host's reply is a message, its bytes of memory, and the models that are loaded")
        message, memory_bytes, loaded = body
        return cls(message, memory_bytes, [_loaded(row) for row in loaded])


_ROW: Final = [str, int, float, float]


def _loaded(row: Any) -> LoadedModel:
    if not isinstance(row, list) or [type(part) for part in row] != _ROW:
        raise DecodeError("a loaded model is its name, its bytes, and the seconds that it took to load and has run")
    return LoadedModel(*row)
