"""The conservation of jobs: how many came, how many ended and how, and how many live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from headrace.errors import DecodeError

__all__ = ["Audit"]


@dataclass(frozen=True, slots=True)
class Audit:
    """The conservation of one model's jobs at one moment."""

    submitted: int = 0
    ok: int = 0
    error: int = 0
    expired: int = 0
    cancelled: int = 0
    dead: int = 0
    live: int = 0
    delayed: int = 0
    """Live jobs that wait for their next attempt."""
    dead_letters: int = 0
    """Dead jobs that can still be replayed."""

    @classmethod
    def from_reply(cls, flat: Sequence[bytes]) -> Self:
        """Read what the AUDIT script returns. Counters of a newer service's are left out.

        Raises:
            DecodeError: it is no list of names and numbers.
        """
        try:
            pairs = {name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}
        except ValueError as error:
            raise DecodeError(f"not an audit: {error}") from None
        return cls(**{name: pairs[name] for name in cls.__slots__ if name in pairs})

    def __add__(self, other: Audit) -> Audit:
        """Of two shards together."""
        return Audit(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    @property
    def finished(self) -> int:
        """Jobs that have their terminal entry."""
        return self.ok + self.error + self.expired + self.cancelled + self.dead

    @property
    def lost(self) -> int:
        """Jobs that were accepted and are neither ended nor live. Anything but 0 is a fault."""
        return max(0, self.submitted - self.finished - self.live)

    @property
    def doubled(self) -> int:
        """Terminal entries beyond one for each job. Anything but 0 is a fault."""
        return max(0, self.finished + self.live - self.submitted)
