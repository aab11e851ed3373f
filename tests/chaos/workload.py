"""What chaos jobs are: everything about a job follows from its id, so every process and the checker agree.

An id is `<producer>-<number>.<wish>`. The wish says what the engine is to do with it, and so how it may end;
the right answer is a digest of the id.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Final

__all__ = [
    "ALLOWED",
    "DEADLINE_S",
    "FLAKY_FAILURES",
    "INNOCENT",
    "Wish",
    "answer_to",
    "job_id",
    "pick",
    "wish_of",
    "words_of",
]


class Wish(StrEnum):
    """What a job asks of the engine that runs it."""

    PLAIN = "plain"
    SLOW = "slow"
    """Takes a while."""
    REFUSE = "refuse"
    """Fails with an error of its own, which no attempt would change."""
    RAISE = "raise"
    """Makes every batch raise that it is in."""
    FLAKY = "flaky"
    """Fails retryably the first times it runs, then succeeds; its policy allows for that."""
    KILL = "kill"
    """Kills the process that runs it."""
    HANG = "hang"
    """Never comes back."""
    EAT = "eat"
    """Takes memory until there is none."""
    CANCEL = "cancel"
    """Takes a while, and is cancelled by its producer."""
    DEADLINE = "deadline"
    """Has little time."""


DEADLINE_S: Final = 0.2
"""Time that a job with a deadline has."""

FLAKY_FAILURES: Final = 2
"""How often a flaky job fails before it succeeds."""

_OK, _ERROR, _DEAD = "ok", "error", "dead"
ALLOWED: Final[Mapping[Wish, frozenset[str]]] = {
    Wish.PLAIN: frozenset({_OK}),
    Wish.SLOW: frozenset({_OK}),
    Wish.REFUSE: frozenset({_ERROR}),
    Wish.RAISE: frozenset({_ERROR, _DEAD}),
    Wish.FLAKY: frozenset({_OK}),
    Wish.KILL: frozenset({_DEAD}),
    Wish.HANG: frozenset({_DEAD}),
    Wish.EAT: frozenset({_ERROR, _DEAD}),
    Wish.CANCEL: frozenset({_OK, "cancelled"}),
    Wish.DEADLINE: frozenset({_OK, "expired"}),
}
"""How a job with each wish may end, whatever else happens."""

INNOCENT: Final = frozenset({Wish.PLAIN, Wish.SLOW, Wish.FLAKY})
"""Wishes of jobs that must end well, whoever their batch mates are."""


def job_id(producer: str, number: int, wish: Wish) -> str:
    """The id of a producer's job."""
    return f"{producer}-{number}.{wish}"


def wish_of(job: str) -> Wish:
    """What the job with this id wishes."""
    return Wish(job.rpartition(".")[2])


def answer_to(job: str, words: int = 0) -> str:
    """The right answer to a job: a digest, or where up to so many words are generated, its text."""
    return "".join(words_of(job, words)) if words else _digest(job)


def words_of(job: str, most: int) -> list[str]:
    """What is generated for a job, word by word: no two jobs have a word in common, and no job has one twice."""
    digest = _digest(job)
    return [f"{digest}.{n} " for n in range(1 + int(digest, 16) % most)]


def _digest(job: str) -> str:
    return blake2b(job.encode(), digest_size=8).hexdigest()


def pick(mix: Mapping[Wish, float], random_: random.Random) -> Wish:
    """A wish at random, by weight; what the weights leave of 1 is plain."""
    point = random_.random()
    for wish, weight in mix.items():
        point -= weight
        if point < 0:
            return wish
    return Wish.PLAIN
