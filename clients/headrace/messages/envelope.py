"""The envelope: what a router, a replica and the scripts know of a job without opening its payload.

One line of text, its words separated by single spaces, the same in the lane, in the record and in COMPLETE's
arguments. Names hold no spaces, so splitting it is all there is to reading it. Wire version 1::

    <version> <id> <inbox> <tenant> <attempt> <deadline ms> <submitted ms> <token> <traceparent> <retry>

Times are Unix milliseconds of the Redis server's clock; a deadline of 0 is none. Attempts count from 1. The
token marks the SUBMIT call, so that its replay is told from a duplicate. No trace context is written as `-`,
and so is the service's own retry policy; `headrace.messages.retry` has the form of another.
A newer version may append words; it never drops one of these.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from headrace.errors import DecodeError

__all__ = ["WIRE_VERSION", "Envelope"]

WIRE_VERSION: Final = 1

_LONGEST_BYTES: Final = 1024
"""Three names, three numbers, a token and a trace context are under 400; words of newer versions follow."""


_NUMBERS: Final = (0, 4, 5, 6)
"""Version, attempt, deadline and submission."""

_END_MS: Final = 1 << 53
"""Times beyond this are none: Lua and floats would not even tell them apart."""


class Envelope(NamedTuple):
    """A parsed envelope."""

    version: int
    job_id: str
    inbox: str
    tenant: str
    attempt: int
    deadline_ms: int
    submitted_ms: int
    token: str
    traceparent: str
    retry: str = "-"

    @classmethod
    def parse(cls, text: bytes) -> Envelope:
        """Read an envelope of this version or a newer one; ask `supported` before opening the payload.

        Raises:
            DecodeError: it is none.
        """
        try:
            # Routers do this for every job: hence no words are given names that go nowhere.
            words: list[Any] = text[:_LONGEST_BYTES].decode("ascii").split(" ", 10)
            for place in _NUMBERS:
                words[place] = int(words[place])
            if not (0 <= words[5] < _END_MS and 0 <= words[6] < _END_MS):
                raise ValueError("a time in it is none")
            return cls(*words[:10])
        except (ValueError, IndexError, TypeError) as error:
            raise DecodeError(f"not an envelope: {text[:200]!r}: {error}") from None

    @property
    def supported(self) -> bool:
        """Whether this code knows the schema that the producer wrote."""
        return self.version <= WIRE_VERSION
