"""Which replica is free: the router's own count of what it gave to whom.

Serve's routers back off when callers outnumber slots, which makes waiting callers ten times slower. So the
router calls only when it knows of a free slot. Each replica has a few: one batch runs, and the next is
prepared meanwhile. A replica that generates has one for each job, and a batch of jobs takes as many.

Replicas with room lie in one heap for each pool, the least busy first and of those the quickest. What is taken out of
turn stays in its heap until it comes to the top, so a batch costs the same among two replicas and among two hundred.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Slot", "SlotLedger", "pool_of"]

_SLOWNESS_WEIGHT: Final = 0.2
_MOST_SLOWNESS: Final = 8.0
_STALE: Final = 64
"""How many entries that are out of date a heap may hold at least."""


def pool_of(replica: str) -> str:
    """The pool a replica is of: what its name begins with; "" where there is only one."""
    pool, slash, _ = replica.partition("/")
    return pool if slash else ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one batch at one replica, or for the jobs of one batch."""

    replica: str
    idle: bool
    """Whether the replica had nothing to do when the slot was taken."""
    alone: bool = False
    """Whether it takes the whole replica: nothing else runs there meanwhile."""
    number: int = field(default=0, compare=False)
    """Tells the batches apart that are out; 0 before one is sent."""

    @property
    def pool(self) -> str:
        """The pool of its replica."""
        return pool_of(self.replica)


_Entry = tuple[int, int, str]


@dataclass(slots=True)
class _Replica:
    name: str
    pool: str
    places: int
    taken: int = 0
    suspended_until_s: float = -math.inf
    gone: bool = False
    slowness: float = 1.0
    free: int = 0
    """Slots that are counted as free."""
    queued: _Entry | None = None
    """Its entry in the heap of its pool that is up to date."""

    @property
    def works(self) -> bool:
        return not self.gone and self.suspended_until_s == -math.inf

    @property
    def entry(self) -> _Entry:
        return self.taken, round(4 * math.log2(self.slowness)), self.name


class SlotLedger:
    """The slots of one model's replicas. Time comes in as an argument.

    Args:
        per_replica: how many batches, or jobs, a replica may hold at once.
        per_pool: the same for the replicas of pools that have a number of their own.
        suspension_s: how long a replica that failed a call is left alone, unless Serve removes it first.
    """

    def __init__(
        self, *, per_replica: int = 2, per_pool: Mapping[str, int] | None = None, suspension_s: float = 1.0
    ) -> None:
        self.per_replica = per_replica
        self._per_pool = dict(per_pool or {})
        self._suspension_s = suspension_s
        self._replicas: dict[str, _Replica] = {}
        self._heaps: dict[str, list[_Entry]] = {}
        self._present: dict[str, int] = {}
        self._suspended: list[tuple[float, str]] = []
        self._reserved: str | None = None
        self._taken = 0
        self._free = 0

    # -- which replicas there are -------------------------------------------------------------------------

    def update(self, replicas: Iterable[str]) -> None:
        """Serve's word on which replicas there are. A batch out at one that went still has to come back."""
        present = set(replicas)
        for name, replica in self._replicas.items():
            replica.gone = name not in present
        for name in present.difference(self._replicas):
            pool = pool_of(name)
            self._replicas[name] = _Replica(name, pool, self._per_pool.get(pool, self.per_replica))
        self._present = {}
        for name in present:
            self._present[pool_of(name)] = self._present.get(pool_of(name), 0) + 1
        for replica in list(self._replicas.values()):
            self._changed(replica)

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        return sum(self._present.values())

    @property
    def pools(self) -> Mapping[str, int]:
        """How many replicas each pool has that has any."""
        return self._present

    @property
    def ahead(self) -> int:
        """For how many replicas jobs are read ahead of free slots."""
        return self.replicas

    @property
    def predictable(self) -> bool:
        """Whether batches come back when they should: nobody else sends any there that this ledger knows nothing of."""
        return True

    def unwanted(self) -> None:
        """There is nothing to send now. Nobody else waits for these slots."""

    def capacity(self, pool: str) -> int:
        """How many batches, or jobs, a replica of this pool may hold at once."""
        return self._per_pool.get(pool, self.per_replica)

    def _changed(self, replica: _Replica) -> None:
        """Count its free slots anew, and have it stand in its heap where it belongs."""
        if replica.gone and not replica.taken:
            self._replicas.pop(replica.name, None)
        free = max(0, replica.places - replica.taken) if replica.works else 0
        self._free += free - replica.free
        replica.free = free
        if free and replica.name != self._reserved:
            self._queue(replica)

    def _queue(self, replica: _Replica) -> None:
        entry = replica.entry
        if replica.queued == entry:
            return
        heap = self._heaps.setdefault(replica.pool, [])
        if len(heap) > 2 * self._present.get(replica.pool, 0) + _STALE:
            heap[:] = {entry for entry in heap if self._up_to_date(entry)}
            heapq.heapify(heap)
        heapq.heappush(heap, entry)
        replica.queued = entry

    def _up_to_date(self, entry: _Entry) -> bool:
        replica = self._replicas.get(entry[2])
        return (
            replica is not None
            and replica.queued == entry == replica.entry
            and replica.free > 0
            and replica.name != self._reserved
        )

    # -- free slots ---------------------------------------------------------------------------------------

    def best(self, now_s: float) -> Slot | None:
        """The slot a batch should go to: an idle replica's, else that of the least busy. It is not taken yet."""
        self._revive(now_s)
        entries = [entry for pool in self._heaps if (entry := self._top(pool)) is not None]
        return _slot(min(entries)) if entries else None

    def best_of_pools(self, now_s: float) -> dict[str, Slot]:
        """The same for each pool that has a free slot."""
        self._revive(now_s)
        return {pool: _slot(entry) for pool in self._heaps if (entry := self._top(pool)) is not None}

    def _top(self, pool: str) -> _Entry | None:
        heap = self._heaps[pool]
        while heap and not self._up_to_date(heap[0]):
            entry = heapq.heappop(heap)
            replica = self._replicas.get(entry[2])
            if replica is not None and replica.queued == entry:
                replica.queued = None
        return heap[0] if heap else None

    def reserve(self, now_s: float, *, shunned: str | None = None) -> Slot | None:
        """A whole replica, as soon as one is idle: until then the least busy is given nothing new.

        Args:
            now_s: the time.
            shunned: a replica to take only if no other is idle.
        """
        self._revive(now_s)
        present = {name: r.taken for name, r in self._replicas.items() if r.works}
        if not present:
            return None
        name = min(present, key=lambda name: (present[name] > 0, name == shunned, present[name], name))
        taken = present[name]
        if taken == 0 or self._reserved not in present:
            self._reserve(name)
        return Slot(name, idle=True, alone=True) if taken == 0 else None

    def unreserve(self) -> None:
        """Nobody wants a whole replica any more."""
        if self._reserved is not None:
            self._reserve(None)

    def _reserve(self, name: str | None) -> None:
        before, self._reserved = self._reserved, name
        if before is not None and before != name and before in self._replicas:
            self._changed(self._replicas[before])

    def room(self, slot: Slot) -> int:
        """How many slots of this one's replica are free."""
        replica = self._replicas[slot.replica]
        return max(0, replica.places - replica.taken)

    def take(self, slot: Slot, places: int = 1) -> None:
        """A batch goes there, which takes so many slots; alone it takes them all."""
        replica = self._replicas[slot.replica]
        self._count(replica, replica.places if slot.alone else places)

    def taken(self, slot: Slot) -> int:
        """How many slots of this one's replica are taken."""
        return self._replicas[slot.replica].taken

    def release(self, slot: Slot, places: int = 1) -> None:
        """The batch came back, or so many jobs of it, or they never will. What ran alone gives all slots back."""
        if slot.alone and slot.replica == self._reserved:
            self._reserved = None
        replica = self._replicas.get(slot.replica)
        if replica is not None:
            self._count(replica, -min(replica.taken, replica.places if slot.alone else places))

    def _count(self, replica: _Replica, places: int) -> None:
        replica.taken += places
        self._taken += places
        self._changed(replica)

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self._taken

    def free(self, now_s: float) -> int:
        """How many slots could be taken now."""
        self._revive(now_s)
        return self._free

    # -- who is left alone, and who is slow ---------------------------------------------------------------

    def suspend(self, slot: Slot, now_s: float, *, for_s: float | None = None) -> None:
        """A call to this replica failed, or takes long: do not call it again at once (infinity: until it answers)."""
        replica = self._replicas.get(slot.replica)
        if replica is not None:
            replica.suspended_until_s = now_s + (self._suspension_s if for_s is None else for_s)
            if replica.suspended_until_s < math.inf:
                heapq.heappush(self._suspended, (replica.suspended_until_s, replica.name))
            self._changed(replica)

    def resume(self, slot: Slot) -> None:
        """A call to this replica came back."""
        replica = self._replicas.get(slot.replica)
        if replica is not None and replica.suspended_until_s != -math.inf:
            replica.suspended_until_s = -math.inf
            self._changed(replica)

    def _revive(self, now_s: float) -> None:
        """Let those work again whose suspension is over."""
        while self._suspended and (self._suspended[0][0] <= now_s or not self._is_suspended(*self._suspended[0])):
            until_s, name = heapq.heappop(self._suspended)
            if self._is_suspended(until_s, name):
                self.resume(Slot(name, idle=False))

    def _is_suspended(self, until_s: float, name: str) -> bool:
        replica = self._replicas.get(name)
        return replica is not None and replica.suspended_until_s == until_s

    def next_resume_s(self, now_s: float) -> float | None:
        """When the first suspended replica may be tried again."""
        self._revive(now_s)
        times = [until_s for until_s, name in self._suspended if self._is_suspended(until_s, name)]
        return min(times, default=None)

    def slowness(self, replica: str) -> float:
        """How many times as long as its pool this replica takes."""
        known = self._replicas.get(replica)
        return known.slowness if known is not None else 1.0

    def learn_slowness(self, replica: str, ratio: float) -> None:
        """A batch there took `ratio` times as long as it would anywhere in its pool."""
        known = self._replicas.get(replica)
        if known is not None:
            ratio = min(max(ratio, 1 / _MOST_SLOWNESS), _MOST_SLOWNESS)
            known.slowness += _SLOWNESS_WEIGHT * (ratio - known.slowness)
            self._changed(known)


def _slot(entry: _Entry) -> Slot:
    return Slot(entry[2], idle=entry[0] == 0)
