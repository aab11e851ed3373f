"""How a model's jobs are routed, and what came of it: what a router is told and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.connection import BLOCK_MS
from headrace.registry import Limits
from headrace_cluster.batch_former import FormingPolicy

__all__ = ["RouterCounts", "RoutingPolicy"]


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
    shards: int = 1
    """How many shards the model has, of which a router has one."""
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
    replica_deaths: int = 0
    """Batches whose replica died or was killed."""
    convicted: int = 0
    """Set aside because they failed alone."""
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    tokens: int = 0
    run_s: float = 0.0
