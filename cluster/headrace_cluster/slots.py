"""Which replica is free: the router's own count of what it gave to whom.

Serve's routers back off when callers outnumber slots, which makes waiting callers ten times slower. So the
router calls only when it knows of a free slot. Each replica has a few: one batch runs, and the next is
prepared meanwhile. A replica that generates has one for each job, and a batch of jobs takes as many.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Slot", "SlotLedger"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one batch at one replica, or for the jobs of one batch."""

    replica: str
    idle: bool
    """Whether the replica had nothing to do when the slot was taken."""
    alone: bool = False
    """Whether it takes the whole replica: nothing else runs there meanwhile."""


@dataclass(slots=True)
class _Replica:
    taken: int = 0
    suspended_until_s: float = float("-inf")
    gone: bool = False


class SlotLedger:
    """The slots of one pool's replicas. Time comes in as an argument.

    Args:
        per_replica: how many batches, or jobs, a replica may hold at once.
        suspension_s: how long a replica that failed a call is left alone, unless Serve removes it first.
    """

    def __init__(self, *, per_replica: int = 2, suspension_s: float = 1.0) -> None:
        self.per_replica = per_replica
        self._suspension_s = suspension_s
        self._replicas: dict[str, _Replica] = {}
        self._reserved: str | None = None

    def update(self, replicas: Iterable[str]) -> None:
        """Serve's word on which replicas there are. A batch out at one that went still has to come back."""
        present = set(replicas)
        for name, replica in self._replicas.items():
            replica.gone = name not in present
        for name in present:
            self._replicas.setdefault(name, _Replica())
        self._sweep()

    def _sweep(self) -> None:
        self._replicas = {name: r for name, r in self._replicas.items() if r.taken or not r.gone}

    def _works(self, replica: _Replica, now_s: float) -> bool:
        return not replica.gone and replica.suspended_until_s <= now_s

    def _usable(self, replica: _Replica, now_s: float) -> bool:
        return self._works(replica, now_s) and replica.taken < self.per_replica

    def best(self, now_s: float) -> Slot | None:
        """The slot a batch should go to: an idle replica's, else that of the least busy. It is not taken yet."""
        usable = [
            (r.taken, name) for name, r in self._replicas.items() if name != self._reserved and self._usable(r, now_s)
        ]
        if not usable:
            return None
        taken, name = min(usable)
        return Slot(name, idle=taken == 0)

    def reserve(self, now_s: float, *, shunned: str | None = None) -> Slot | None:
        """A whole replica, as soon as one is idle: until then the least busy is given nothing new.

        Args:
            now_s: the time.
            shunned: a replica to take only if no other is idle.
        """
        present = {name: r.taken for name, r in self._replicas.items() if self._works(r, now_s)}
        if not present:
            return None
        name = min(present, key=lambda name: (present[name] > 0, name == shunned, present[name], name))
        taken = present[name]
        if taken == 0 or self._reserved not in present:
            self._reserved = name
        return Slot(name, idle=True, alone=True) if taken == 0 else None

    def unreserve(self) -> None:
        """Nobody wants a whole replica any more."""
        self._reserved = None

    def room(self, slot: Slot) -> int:
        """How many slots of this one's replica are free."""
        return self.per_replica - self.taken(slot)

    def take(self, slot: Slot, places: int = 1) -> None:
        """A batch goes there, which takes so many slots; alone it takes them all."""
        self._replicas[slot.replica].taken += self.per_replica if slot.alone else places

    def taken(self, slot: Slot) -> int:
        """How many slots of this one's replica are taken."""
        return self._replicas[slot.replica].taken

    def release(self, slot: Slot, places: int = 1) -> None:
        """The batch came back, or so many jobs of it, or they never will. What ran alone gives all slots back."""
        if slot.alone and slot.replica == self._reserved:
            self._reserved = None
        replica = self._replicas.get(slot.replica)
        if replica is not None:
            replica.taken = max(0, replica.taken - (self.per_replica if slot.alone else places))
            self._sweep()

    def suspend(self, slot: Slot, now_s: float, *, for_s: float | None = None) -> None:
        """A call to this replica failed, or takes long: do not call it again at once."""
        if slot.replica in self._replicas:
            for_s = self._suspension_s if for_s is None else for_s
            self._replicas[slot.replica].suspended_until_s = now_s + for_s

    def resume(self, slot: Slot) -> None:
        """A call to this replica came back."""
        if slot.replica in self._replicas:
            self._replicas[slot.replica].suspended_until_s = float("-inf")

    def next_resume_s(self, now_s: float) -> float | None:
        """When the first suspended replica may be tried again."""
        times = [r.suspended_until_s for r in self._replicas.values() if not r.gone and r.suspended_until_s > now_s]
        return min(times, default=None)

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        return sum(not r.gone for r in self._replicas.values())

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return sum(r.taken for r in self._replicas.values())

    def free(self, now_s: float) -> int:
        """How many slots could be taken now."""
        return sum(self.per_replica - r.taken for r in self._replicas.values() if self._usable(r, now_s))
