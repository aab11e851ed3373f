"""What a process of the cluster is told at its birth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from chaos.workload import Wish

__all__ = ["MODEL", "Order", "Traffic"]

MODEL = "chaos"
"""The name under which producers know the one model of a run."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a producer submits."""

    mix: dict[Wish, float] = field(default_factory=dict)
    """The share of each wish; the rest is plain."""
    chosen: dict[int, Wish] = field(default_factory=dict)
    """The wishes of certain jobs, by their numbers."""
    in_flight: int = 512
    """How many jobs it has unanswered at most."""
    jobs: int = 0
    """After how many it stops; 0 goes on until it is told."""
    at_once: int = 64
    """Jobs of one submission."""
    pause_s: float = 0.0
    """Between two submissions."""
    delay_s: float = 0.0
    """Before the first."""
    tenant: str = "default"
    trims: bool = False
    """Whether it deletes the answers that it has written down."""


@dataclass(frozen=True, slots=True)
class Order:
    """One life of a process: `name` is the process, `life` this life of it."""

    role: str
    name: str
    life: str
    directory: Path
    """Of the whole run."""
    url: str
    seed: int = 0
    model: str = MODEL
    traffic: Traffic = field(default_factory=Traffic)
    batch_s: float = 0.003
    """What a batch takes at least."""
    batch_jobs: int = 32
    call_timeout_s: float = 6.0
    """After how long a replica that does not answer is killed."""
    retention_s: float = 3600.0
    lane_capacity: int = 1_000_000
    words: int = 0
    """How many words a job generates at most; 0: jobs are answered in batches, each at once."""

    @property
    def histories(self) -> Path:
        """Where histories lie."""
        return self.directory / "histories"

    @property
    def sockets(self) -> Path:
        """Where the sockets of replicas lie."""
        return self.directory / "replicas"

    @property
    def scratch(self) -> Path:
        """Where flaky jobs' failures are counted."""
        return self.directory / "scratch"

    @property
    def log(self) -> Path:
        """What this life says to its standard error."""
        return self.directory / "logs" / f"{self.life}.log"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"directory": str(self.directory)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        traffic: dict[str, Any] = fields.pop("traffic")
        traffic["mix"] = {Wish(wish): share for wish, share in traffic["mix"].items()}
        traffic["chosen"] = {int(number): Wish(wish) for number, wish in traffic["chosen"].items()}
        return cls(**fields | {"directory": Path(fields["directory"]), "traffic": Traffic(**traffic)})
