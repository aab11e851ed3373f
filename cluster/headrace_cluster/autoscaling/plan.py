"""What may be scaled, and towards what: the part of the configuration that the autoscaler works by.

It travels to Serve's controller inside the policy of each pool, so it is plain data, and light to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace_cluster.autoscaling.variant_ladder import LadderPolicy
from headrace_cluster.scheduling.cost_model import CPU_PRIOR, Coefficients
from headrace_workers.telemetry.observability import LogsConfig

__all__ = ["LEAST_COOL_DOWN_S", "ModelPlan", "PoolPlan", "ScalingPlan"]

LEAST_COOL_DOWN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model: where it may run, and how soon its work is to be done."""

    name: str
    pools: tuple[str, ...]
    """The deployments that run it: `minilm@cpu`, or `@big`, which several models share."""
    shards: tuple[str, ...] = ()
    """Names under which its work lies in Redis; none: its own."""
    max_jobs: int = 64
    """Jobs of one batch at most."""
    max_tokens: int = 4096
    """Tokens of one batch at most."""
    slots: int = 0
    """Jobs that one replica runs at the same time, where jobs end one by one; 0: they end with their batch."""
    drain_s: float = 30.0
    """How soon after it was submitted a job is to be answered, where its deadline does not ask for more."""
    idle_s: float = 300.0
    """For how long no job must have come before its pools may stop altogether."""
    utilisation: float = 1.0
    """What part of a replica's time steady arrivals may fill."""
    ladder: LadderPolicy | None = None
    """When its pools take a faster variant; None: never."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its names in Redis."""
        return self.shards or (self.name,)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its bounds and what it costs."""

    name: str
    min_replicas: int
    max_replicas: int
    cost: float = 1.0
    """What a second of one replica costs, in a unit of the owner's."""
    cool_down_s: float | None = None
    """For how long fewer replicas must have been enough before some are given back. None: for as long as a new one
    takes to start, and five seconds at least, which costs at most twice what knowing the future would (Karlin et al.
    1988, "Competitive snoopy caching")."""
    start_up_s: float = 10.0
    """How long a replica takes to start, until that was measured."""
    prior: Coefficients = CPU_PRIOR
    """What a batch takes, until that was measured."""
    cpus: float = 1.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a node's labels must be for a replica to run there."""

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.min_replicas == self.max_replicas

    def bound(self, replicas: int) -> int:
        """The number of replicas next to this one that is allowed."""
        return min(max(replicas, self.min_replicas), self.max_replicas)

    def cool_down(self, start_up_s: float) -> float:
        """The cool-down in seconds, where a replica takes so long to start."""
        return max(LEAST_COOL_DOWN_S, start_up_s) if self.cool_down_s is None else self.cool_down_s


_LOGS: Final = LogsConfig()


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """All models and pools of one application; they are decided together."""

    models: tuple[ModelPlan, ...]
    pools: tuple[PoolPlan, ...]
    metrics: bool = True
    """Whether decisions are counted where Ray exports metrics."""
    logs: LogsConfig = _LOGS
    """What the process that decides writes."""

    def __post_init__(self) -> None:
        unknown = {pool for model in self.models for pool in model.pools} - {pool.name for pool in self.pools}
        if unknown:
            raise ValueError(f"no such pool: {sorted(unknown)}")
