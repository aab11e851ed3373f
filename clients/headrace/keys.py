"""Every Redis key headrace uses, and the only place that spells one.

All keys of a model carry the hash tag `{model}`, so one script touches one slot of a Redis Cluster
and models spread over its nodes. Names are short because each of them is repeated in the AOF.

===================  ======  =====================================================  =====================
key                  type    holds                                                  lives
===================  ======  =====================================================  =====================
``hr:models``        set     names of the registered models                         permanent
``hr:{m}:meta``      hash    limits and wire versions of the service                permanent
``hr:{m}:q:<0-23>``  stream  the lanes: waiting and delivered jobs, group ``g``     permanent, bounded
``hr:{m}:cnt``       hash    how many jobs were submitted and ended, by status      permanent
``hr:{m}:ten``       hash    live jobs per tenant; a field goes when it is 0        permanent
``hr:{m}:tl``        hash    which eighth of the lanes a tenant with live jobs has  permanent
``hr:{m}:j:<id>``    string  the record of one job                                  TTL once it has ended
``hr:{m}:r:<box>``   stream  an inbox: chunks and terminal entries of its jobs      TTL since the last one
``hr:{m}:s:<id>``    list    a streamed job's owner, then the bodies of its chunks  until the job has ended
``hr:{m}:dz``        zset    delayed jobs, by when their next attempt is due (ms)   permanent
``hr:{m}:d:<id>``    hash    what a delayed job is: lane, envelope, payload         until it is due
``hr:{m}:dlq``       stream  dead letters                                           permanent, bounded
``hr:{m}:c``         stream  requests to cancel jobs that are in somebody's hands   TTL since the last one
``hr:{m}:hb:<who>``  string  heartbeat of one consumer of the lanes                 TTL of a few seconds
``hr:{m}:pools``     hash    of its pools: costs, sizes of jobs, variants           permanent, bounded
``hr:{m}:gen``       hash    which generation of the application reads, and by whom permanent
``hr:{m}:fs``        string  nothing; a write for WAITAOF to wait for               TTL of a second
===================  ======  =====================================================  =====================

A lane's number is its priority (0 high, 1 normal, 2 low) plus three times the part of the tenants it is for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

__all__ = [
    "EVERY_KEY",
    "GROUP",
    "LANES",
    "MODELS",
    "TENANT_PARTS",
    "Keys",
    "declared_keys",
    "fsync_mark",
    "keys_of",
    "priority_of",
]

MODELS: Final = "hr:models"
"""Set of registered model names. It has no hash tag: no script touches it."""

EVERY_KEY: Final = "hr:*"
"""The pattern of all keys, for SCAN."""

GROUP: Final = "g"
"""The one consumer group of every lane. Created at 0, since entries are deleted when acknowledged."""

TENANT_PARTS: Final = 8
"""Into how many parts each priority's jobs are split by tenant."""

LANES: Final = 3 * TENANT_PARTS
"""Lanes of a model."""


def priority_of(lane: int) -> int:
    """The priority whose jobs wait in a lane: 0 high, 1 normal, 2 low."""
    return lane % 3


class Keys:
    """The keys of one model."""

    __slots__ = (
        "cancels",
        "counters",
        "dead_letters",
        "delayed",
        "generation",
        "lanes",
        "meta",
        "model",
        "parts",
        "pools",
        "prefix",
        "tenants",
    )

    def __init__(self, model: str) -> None:
        self.model = model
        self.prefix = f"hr:{{{model}}}:"
        self.meta = self.prefix + "meta"
        self.lanes = tuple(f"{self.prefix}q:{lane}" for lane in range(LANES))
        self.counters = self.prefix + "cnt"
        self.tenants = self.prefix + "ten"
        self.parts = self.prefix + "tl"
        self.delayed = self.prefix + "dz"
        self.dead_letters = self.prefix + "dlq"
        self.cancels = self.prefix + "c"
        self.pools = self.prefix + "pools"
        self.generation = self.prefix + "gen"

    def record(self, job_id: str) -> str:
        """The key of one job's record."""
        return f"{self.prefix}j:{job_id}"

    def inbox(self, name: str) -> str:
        """The key of the stream behind the inbox `name`."""
        return f"{self.prefix}r:{name}"

    def chunks(self, job_id: str) -> str:
        """The key of a streamed job's owner and chunks."""
        return f"{self.prefix}s:{job_id}"

    def delayed_job(self, job_id: str) -> str:
        """The key of what a delayed job is."""
        return f"{self.prefix}d:{job_id}"

    def heartbeat(self, consumer: str) -> str:
        """The key that stands while a consumer of the lanes lives."""
        return f"{self.prefix}hb:{consumer}"

    @property
    def permanent(self) -> frozenset[str]:
        """The keys of this model that may stand without a TTL."""
        return frozenset(
            {
                self.meta,
                self.counters,
                self.tenants,
                self.parts,
                self.delayed,
                self.dead_letters,
                self.pools,
                self.generation,
                *self.lanes,
            }
        )


def declared_keys(prefix: str) -> tuple[str, str]:
    """What a script that gets `prefix` names as its keys on a cluster.

    While a slot moves from one node to another, a call that names a key that stands and one that never does is told
    to try again: nothing is done by halves, some of it here and some of it there.
    """
    return prefix, prefix + "meta"


def fsync_mark(prefix: str) -> str:
    """The key that is written so that WAITAOF has something to wait for."""
    return prefix + "fs"


@lru_cache(maxsize=4096)
def keys_of(model: str) -> Keys:
    """The `Keys` of a model, built once per process."""
    return Keys(model)
