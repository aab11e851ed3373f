"""Every Redis key headrace uses, and the only place that spells one.

All keys of a model carry the hash tag `{model}`, so one script touches one slot of a Redis Cluster
and models spread over its nodes. Names are short because each of them is repeated in the AOF.

==================  ======  ====================================================  =====================
key                 type    holds                                                 lives
==================  ======  ====================================================  =====================
``hr:models``       set     names of the registered models                        permanent
``hr:{m}:meta``     hash    limits and wire versions of the service               permanent
``hr:{m}:q:<0-2>``  stream  the lanes: waiting and delivered jobs, group ``g``    permanent, bounded
``hr:{m}:cnt``      hash    how many jobs were submitted and ended, by status     permanent
``hr:{m}:ten``      hash    live jobs per tenant; a field goes when it is 0       permanent
``hr:{m}:j:<id>``   string  the record of one job                                 TTL once it has ended
``hr:{m}:r:<box>``  stream  an inbox: chunks and terminal entries of its jobs     TTL since the last one
==================  ======  ====================================================  =====================
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

__all__ = ["GROUP", "MODELS", "Keys", "keys_of"]

MODELS: Final = "hr:models"
"""Set of registered model names. It has no hash tag: no script touches it."""

GROUP: Final = "g"
"""The one consumer group of every lane. Created at 0, since entries are deleted when acknowledged."""


class Keys:
    """The keys of one model."""

    __slots__ = ("counters", "lanes", "meta", "model", "prefix", "tenants")

    def __init__(self, model: str) -> None:
        self.model = model
        self.prefix = f"hr:{{{model}}}:"
        self.meta = self.prefix + "meta"
        self.lanes = tuple(f"{self.prefix}q:{priority}" for priority in range(3))
        self.counters = self.prefix + "cnt"
        self.tenants = self.prefix + "ten"

    def record(self, job_id: str) -> str:
        """The key of one job's record."""
        return f"{self.prefix}j:{job_id}"

    def inbox(self, name: str) -> str:
        """The key of the stream behind the inbox `name`."""
        return f"{self.prefix}r:{name}"

    @property
    def permanent(self) -> frozenset[str]:
        """The keys of this model that may stand without a TTL."""
        return frozenset({self.meta, self.counters, self.tenants, *self.lanes})


@lru_cache(maxsize=4096)
def keys_of(model: str) -> Keys:
    """The `Keys` of a model, built once per process."""
    return Keys(model)
