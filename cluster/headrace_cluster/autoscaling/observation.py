"""What the autoscaler is told of the world, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["MEAN_TOKENS", "ModelLoad", "Observation", "PoolState"]

MEAN_TOKENS = 100.0
"""How large a job is thought to be before any was seen."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """The jobs of one model."""

    waiting: int = 0
    """Jobs that no router took yet."""
    delivered: int = 0
    """Jobs that a router took and that have no answer yet."""
    arrivals_per_s: float = 0.0
    """How many jobs come in a second, of late."""
    mean_tokens: float = MEAN_TOKENS
    """Tokens of a job."""
    slack_s: float | None = None
    """How long before its deadline a job is submitted, in most cases; None: there are no deadlines."""
    oldest_s: float = 0.0
    """How long ago the oldest waiting job was submitted."""
    submitted: int = 0
    """All jobs that ever came: one that comes and goes between two looks leaves its trace only here."""

    @property
    def live(self) -> int:
        """Jobs that want an answer."""
        return self.waiting + self.delivered


@dataclass(frozen=True, slots=True)
class PoolState:
    """The replicas of one pool."""

    replicas: int
    """Replicas that run."""
    target: int
    """Replicas that there shall be."""
    start_up_s: float
    """How long one takes to start, as it was measured."""
    costs: Mapping[str, CostModel] = field(default_factory=dict)
    """By model, what a batch of it takes here."""
    unplaceable: str = ""
    """Why no node of the cluster can hold a replica; empty if one can."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All models and pools of one application."""

    taken_s: float
    """When, on the clock of whoever asks for decisions."""
    models: Mapping[str, ModelLoad]
    pools: Mapping[str, PoolState]
