"""The entry of a lane: two fields, `e` the envelope and `p` the payload that a router never opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.errors import DecodeError
from headrace.keys import priority_of
from headrace.messages.envelope import Envelope

__all__ = ["LaneEntry"]


class LaneEntry(NamedTuple):
    """One job as it lies in a lane, and as a router passes it to a replica."""

    lane: int
    entry_id: str
    text: bytes
    """The envelope as it was written."""
    payload: bytes

    @classmethod
    def read(cls, lane: int, entry_id: bytes, fields: Sequence[bytes]) -> LaneEntry:
        """The entry behind a flat field list of XREADGROUP.

        Raises:
            DecodeError: it has no envelope or no payload.
        """
        try:
            if len(fields) == 4 and fields[0] == b"e" and fields[2] == b"p":  # as the scripts write it
                return cls(lane, entry_id.decode("ascii"), fields[1], fields[3])
            known = dict(zip(fields[::2], fields[1::2], strict=True))
            return cls(lane, entry_id.decode("ascii"), known[b"e"], known[b"p"])
        except KeyError as missing:
            raise DecodeError(f"lane entry {entry_id!r} has no field {missing}") from None
        except ValueError as error:
            raise DecodeError(f"lane entry {entry_id!r} is malformed: {error}") from None

    @property
    def priority(self) -> int:
        """0 high, 1 normal, 2 low."""
        return priority_of(self.lane)

    @property
    def envelope(self) -> Envelope:
        """The parsed envelope.

        Raises:
            DecodeError: it is none.
        """
        return Envelope.parse(self.text)
