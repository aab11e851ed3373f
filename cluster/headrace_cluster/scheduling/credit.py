"""How much a router may read: only what its replicas have room for.

Work that waits in Redis can be taken by any router, survives this one and costs it no memory. So a router
holds no more than fills its free slots and one more batch for each replica, and each of the three priorities
has that credit for itself, lest a flood in one keep the others from being seen. A priority's lanes share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from headrace.keys import LANES
from headrace_cluster.scheduling.routing import RoutingPolicy

__all__ = ["CreditPolicy", "credit_of", "entries_to_read"]

_LEAST_AHEAD: Final = 8
"""How many jobs are read ahead at least: among fewer there would be little to choose from."""


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """The bounds of what a router holds of one model."""

    batch_jobs: int = 64
    """Jobs that are read ahead for each replica: a batch."""
    slot_jobs: int | None = None
    """Jobs that a free slot takes; None: a batch."""
    max_held_bytes: int = 64 << 20
    max_read: int = 512
    """Entries of one lane that one read takes at most."""


def credit_of(policy: RoutingPolicy) -> CreditPolicy:
    """A slot takes a batch, and another is read ahead; where it takes a job, what is read ahead is half a replica's."""
    if not policy.jobs_per_replica:
        return CreditPolicy(batch_jobs=policy.forming.max_jobs)
    ahead = max(_LEAST_AHEAD, policy.jobs_per_replica // 2)
    return CreditPolicy(batch_jobs=ahead, slot_jobs=1)


def entries_to_read(
    policy: CreditPolicy,
    *,
    free_slots: int,
    replicas: int,
    waiting: int,
    active: int = 1,
    held_bytes: int,
    mean_bytes: float,
) -> int:
    """How many entries of each of a priority's lanes may be read now; 0 if none.

    Args:
        policy: the bounds.
        free_slots: batches, or jobs where each has a slot, that could be dispatched at once.
        replicas: how many replicas there are; with none, everything stays in Redis.
        waiting: jobs of this priority that the router holds undispatched.
        active: how many of its lanes had entries at the last read.
        held_bytes: the payload bytes of all jobs the router holds, those of batches that are out among them.
        mean_bytes: what a payload has been on average. Every lane of every priority may bring as much.
    """
    if replicas == 0 or held_bytes >= policy.max_held_bytes:
        return 0
    slot_jobs = policy.batch_jobs if policy.slot_jobs is None else policy.slot_jobs
    room = free_slots * slot_jobs + replicas * policy.batch_jobs - waiting
    if room < max(1, policy.batch_jobs // 2):
        return 0
    affordable = int((policy.max_held_bytes - held_bytes) / max(1.0, mean_bytes * LANES))
    return max(1, min(room // max(1, active), policy.max_read, affordable))
