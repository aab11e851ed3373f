"""What became of the jobs of one model under one policy, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fate", "Outcome"]


class Fate(IntEnum):
    """How a job ended. Every job ends once."""

    NONE = 0
    """Not yet: none is left of these when a run is over."""
    ANSWERED = 1
    EXPIRED = 2
    """Its deadline passed before it was sent to a replica."""
    DEAD = 3
    """Given up, because it was alone on replicas that went."""


@dataclass(slots=True, eq=False)
class Outcome:
    """One model's jobs; element i of an array is of job i. Times are by the trace's clock."""

    start_s: NDArray[np.float64]
    """When it was first sent to a replica; where it never was, when it ended."""
    end_s: NDArray[np.float64]
    fate: NDArray[np.int8]
    batches: int = 0
    real_tokens: int = 0
    """Tokens of all batches that ran to their end."""
    computed_tokens: int = 0
    """The same with padding."""
    busy_s: float = 0.0
    """Seconds of replicas, or of slots, that computed."""
    held_s: float = 0.0
    """The same that were paid for."""
    cost: float = 0.0
    """Seconds of replicas, each times the cost of its pool."""
    returned: int = 0
    """Jobs whose replica died, each time."""
    hedged: int = 0
    """Batches that were sent a second time because the first was late."""
    ended_s: float = 0.0
    """When the last job ended."""
    decisions: int = 0
    """How often the number of replicas wanted changed."""
    replicas: list[tuple[float, int]] = field(default_factory=list)
    """When how many more, or fewer, were paid for."""
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """Samples of how many jobs waited."""
    reasons: list[tuple[float, str, int, str]] = field(default_factory=list)
    """When, in which pool, to how many, and why: each change of the number wanted."""
