"""How a model's jobs are routed, and what came of it: what a router is told and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.models.registry import Limits
from headrace.server.connection import BLOCK_MS
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.cost_model import CPU_PRIOR, Coefficients

__all__ = ["HELD_BYTES", "PoolFacts", "RouterCounts", "RoutingPolicy"]


HELD_BYTES: Final = 64 << 20
"""Payload bytes that a router holds of a model at most; of models that share a pool, of all of them together."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What a router is told of one pool."""

    weight: float = 1.0
    """What a second of one replica costs."""
    batches_per_replica: int | None = None
    """Batches that a replica has at once; None: as the model has it."""
    jobs_per_replica: int | None = None
    """The same for jobs, where they end one by one."""
    prior: Coefficients = CPU_PRIOR
    """What a batch takes, as long as nothing is known."""


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """How one model's jobs are routed."""

    forming: FormingPolicy = field(default_factory=FormingPolicy)
    limits: Limits = field(default_factory=Limits)
    batches_per_replica: int = 2
    """One runs, the others are prepared meanwhile."""
    jobs_per_replica: int = 0
    """Jobs that a replica has at once, where it generates and jobs end one by one; 0: they end with their batch."""
    call_timeout_s: float = 300.0
    """How long a replica may take for one batch, or say nothing of one that ends job by job, before it is killed.
    After half of it, it gets nothing new."""
    pools: Mapping[str, PoolFacts] = field(default_factory=dict)
    """What differs between the pools, by their names: those that replicas' names begin with."""
    shards: int = 1
    """How many shards the model has, of which a router has one."""
    upkeep_every_s: float = 0.25
    """How often it looks for delayed jobs that are due, cancellations and jobs of the dead."""
    max_held_bytes: int = HELD_BYTES
    """Payload bytes that are held at most."""
    lone_failures: int = 2
    """After how many failures alone on a replica a job is taken to be the cause."""
    block_ms: int = BLOCK_MS
    """How long a read waits at the server when there is nothing to read; the longest a stop has to wait."""


@dataclass(slots=True)
class RouterCounts:
    """What a router did since it started, in jobs unless said otherwise."""

    read: int = 0
    reaped: int = 0
    """Taken over from routers that died."""
    batches: int = 0
    """Batches."""
    dispatched: int = 0
    answered: int = 0
    late: int = 0
    """Computed here, and answered by somebody else before."""
    delayed: int = 0
    """Failed, and handed back for another attempt later."""
    returned: int = 0
    """Dispatched, and neither answered nor delayed."""
    hedged: int = 0
    """Batches that were late, and sent to another replica as well."""
    replica_deaths: int = 0
    """Replicas that died, or were killed, with batches."""
    convicted: int = 0
    """Set aside because they failed alone."""
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    tokens: int = 0
    run_s: float = 0.0
