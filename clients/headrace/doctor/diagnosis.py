"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from headrace.server.check import Durability

__all__ = ["Case", "Diagnosis", "Examiner", "Level", "worst"]


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WARN = 1
    """It works, and will not always."""
    ERROR = 2
    """Jobs are lost, refused or not done."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found."""

    subject: str
    """What was looked at: `redis`, `keys`, `config` …"""
    level: Level
    what: str
    """What is so."""
    why: str = ""
    """Why that matters; empty where all is well."""
    fix: str = ""
    """The command or setting that makes it right; empty where all is well."""


@dataclass(slots=True)
class Case:
    """What is to be looked at. An examiner that reads the configuration fills in what that says of Redis."""

    config: Path | None = None
    redis_url: str | None = None
    durability: Durability | None = None
    """The least that the server must keep through a crash."""
    ray_address: str | None = None


Examiner = Callable[[Case], Iterable[Diagnosis]]
"""What an entry point of the group `headrace.doctor` names. It never raises for what it finds."""


def worst(diagnoses: Iterable[Diagnosis]) -> Level:
    """The worst of them."""
    return max((found.level for found in diagnoses), default=Level.OK)
