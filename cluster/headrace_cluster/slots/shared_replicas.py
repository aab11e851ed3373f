"""The replicas of a shared pool: which there are, what each of them has loaded, and so where each model is. Pure."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Final

from headrace.messages.host import LoadedModel
from headrace_cluster.slots.host_memory import SharedReplica
from headrace_cluster.slots.ledger import pool_of

__all__ = ["SharedReplicas"]

_NOWHERE: Final[frozenset[str]] = frozenset()


class SharedReplicas:
    """Every replica that there is, or that went while batches were out there."""

    def __init__(self) -> None:
        self._replicas: dict[str, SharedReplica] = {}
        self._present: frozenset[str] = frozenset()
        self._homes: dict[str, set[str]] = {}

    def __iter__(self) -> Iterator[SharedReplica]:
        return iter(self._replicas.values())

    def __getitem__(self, name: str) -> SharedReplica:
        return self._replicas[name]

    def get(self, name: str) -> SharedReplica | None:
        """A replica, unless it is gone and nothing is out there."""
        return self._replicas.get(name)

    @property
    def pools(self) -> Mapping[str, int]:
        """How many replicas the pool has."""
        return {pool_of(next(iter(self._present))): len(self._present)} if self._present else {}

    def working(self, now_s: float) -> Iterator[SharedReplica]:
        """The replicas that may be given something."""
        return (replica for replica in self if replica.works(now_s))

    def next_resume_s(self, now_s: float) -> float:
        """When the first suspended replica may be tried again; infinite if none is suspended."""
        times = (replica.suspended_until_s for replica in self if not replica.gone)
        return min((time_s for time_s in times if time_s > now_s), default=math.inf)

    def update(self, names: Iterable[str]) -> bool:
        """Serve's word on which there are; whether it is another than before."""
        present = frozenset(names)
        if present == self._present:
            return False
        self._present = present
        for name in present.difference(self._replicas):
            self._replicas[name] = SharedReplica(name)
        for replica in list(self):
            replica.gone = replica.name not in present
            self.let_go(replica)
        return True

    def let_go(self, replica: SharedReplica) -> None:
        """Forget one that is gone, once no batch is out there."""
        if not replica.gone or replica.out:
            return
        del self._replicas[replica.name]
        for name in replica.memory.models:
            self._homes[name].discard(replica.name)

    # -- what they have loaded ----------------------------------------------------------------------------------

    def homes_of(self, model: str) -> Set[str]:
        """The replicas that have a model loaded, or will have it once what was sent there is through."""
        return self._homes.get(model, _NOWHERE)

    def used(self, replica: SharedReplica, model: str, age: int, size_bytes: int) -> None:
        """A batch of a model is on its way there; see `HostMemory.used`."""
        with self._watched(replica):
            replica.memory.used(model, age, size_bytes)

    def heard(
        self, replica: SharedReplica, memory_bytes: int, loaded: Sequence[LoadedModel], *, coming: Container[str]
    ) -> Mapping[str, float]:
        """It says what it has loaded; returns the seconds that each model ran there since. See `HostMemory.heard`."""
        with self._watched(replica):
            return replica.memory.heard(memory_bytes, loaded, coming=coming)

    @contextmanager
    def _watched(self, replica: SharedReplica) -> Iterator[None]:
        """Note which models come and go on a replica meanwhile."""
        before = replica.memory.models
        yield
        after = replica.memory.models
        for name in before - after:
            self._homes[name].discard(replica.name)
        for name in after - before:
            self._homes.setdefault(name, set()).add(replica.name)
