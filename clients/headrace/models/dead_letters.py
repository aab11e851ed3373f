"""Dead letters: jobs that were given up, kept with their original bytes until somebody replays or drops them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import redis.asyncio

from headrace import scripts
from headrace.codec import unpack
from headrace.errors import DecodeError
from headrace.keys import keys_of, priority_of
from headrace.messages.envelope import Envelope
from headrace.messages.job import PRIORITIES, Priority
from headrace.scripts import ReplayOutcome
from headrace.server.connection import execute, translated

__all__ = ["DeadLetter", "LetterFilter", "drop_letters", "read_letters", "replay_letters"]

_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One job that was given up."""

    letter_id: str
    """Where it lies; its first part is when it died, in Unix milliseconds of the server's clock."""
    envelope: Envelope
    lane: int
    payload: bytes
    """The packed input and parameters, as they were submitted."""
    code: str
    message: str

    @classmethod
    def read(cls, letter_id: bytes, fields: Sequence[bytes]) -> Self:
        """The letter behind a flat field list.

        Raises:
            DecodeError: it is none.
        """
        try:
            known = dict(zip(fields[::2], fields[1::2], strict=True))
            failure = unpack(known[b"r"])
            int(letter_id.partition(b"-")[0])  # as `died_ms` reads it
            return cls(
                letter_id=letter_id.decode("ascii"),
                envelope=Envelope.parse(known[b"e"]),
                lane=int(known[b"l"]),
                payload=known[b"p"],
                code=str(failure["code"]),
                message=str(failure["message"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"dead letter {letter_id!r} is malformed: {error!r}") from None

    @property
    def died_ms(self) -> int:
        """When, in Unix milliseconds of the server's clock."""
        return int(self.letter_id.partition("-")[0])

    @property
    def priority(self) -> Priority:
        """The priority it was submitted with."""
        return PRIORITIES[priority_of(self.lane)]


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant. What is not given is not asked."""

    letter_ids: frozenset[str] = frozenset()
    job_ids: frozenset[str] = frozenset()
    code: str | None = None
    tenant: str | None = None
    older_than_s: float | None = None

    def takes(self, letter: DeadLetter, now_s: float) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.letter_ids or letter.letter_id in self.letter_ids)
            and (not self.job_ids or letter.envelope.job_id in self.job_ids)
            and self.code in (None, letter.code)
            and self.tenant in (None, letter.envelope.tenant)
            and (self.older_than_s is None or letter.died_ms / 1000 <= now_s - self.older_than_s)
        )


async def read_letters(
    client: redis.asyncio.Redis, model: str, wanted: LetterFilter | None = None
) -> AsyncIterator[DeadLetter]:
    """The dead letters of a model that are meant, oldest first.

    Raises:
        RedisError: they cannot be read.
        DecodeError: one of them is none.
    """
    wanted, after, now_s = wanted or LetterFilter(), "-", time.time()
    while True:
        async with translated(f"reading the dead letters of {model}"):
            rows: Any = await execute(client, "XRANGE", keys_of(model).dead_letters, after, "+", "COUNT", _AT_ONCE)
        for letter_id, fields in rows:
            letter = DeadLetter.read(letter_id, fields)
            if wanted.takes(letter, now_s):
                yield letter
        if len(rows) < _AT_ONCE:
            return
        after = f"({rows[-1][0].decode('ascii')}"


async def replay_letters(client: redis.asyncio.Redis, model: str, letter_ids: Sequence[str]) -> list[ReplayOutcome]:
    """Submit letters again, as they were, for a first attempt without a deadline; what became of each, in order."""
    outcomes: list[ReplayOutcome] = []
    for start in range(0, len(letter_ids), scripts.MAX_JOBS):
        outcomes += await scripts.replay(client, model, letter_ids[start : start + scripts.MAX_JOBS])
    return outcomes


async def drop_letters(client: redis.asyncio.Redis, model: str, letter_ids: Sequence[str]) -> int:
    """Delete letters for good; how many there were."""
    dropped = 0
    async with translated(f"dropping dead letters of {model}"):
        for start in range(0, len(letter_ids), _AT_ONCE):
            some = letter_ids[start : start + _AT_ONCE]
            dropped += int(await execute(client, "XDEL", keys_of(model).dead_letters, *some))
    return dropped
