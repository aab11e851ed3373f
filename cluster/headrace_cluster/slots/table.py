"""What a scheduler asks of whoever counts slots: a model's own `SlotLedger`, or its view of a pool it shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from headrace_cluster.slots.ledger import Slot

__all__ = ["SlotTable"]


class SlotTable(Protocol):
    """The slots of a model's replicas; each method is as `SlotLedger` has it. Time comes in as an argument."""

    def update(self, replicas: Iterable[str]) -> None:
        """Serve's word on which replicas there are. A batch out at one that went still has to come back."""
        ...

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        ...

    @property
    def pools(self) -> Mapping[str, int]:
        """How many replicas each pool has that has any."""
        ...

    def capacity(self, pool: str) -> int:
        """How many batches, or jobs, a replica of this pool may hold at once."""
        ...

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        ...

    def free(self, now_s: float) -> int:
        """How many slots could be taken now."""
        ...

    @property
    def ahead(self) -> int:
        """For how many replicas jobs are read ahead of free slots."""
        ...

    @property
    def predictable(self) -> bool:
        """Whether batches come back when they should, and somebody is to blame if one does not."""
        ...

    def unwanted(self) -> None:
        """There is nothing to send now: others who share the slots need not wait for this one."""
        ...

    def best(self, now_s: float) -> Slot | None:
        """The slot a batch should go to: an idle replica's, else that of the least busy. It is not taken yet."""
        ...

    def best_of_pools(self, now_s: float) -> Mapping[str, Slot]:
        """The same for each pool that has a free slot."""
        ...

    def reserve(self, now_s: float, *, shunned: str | None = None) -> Slot | None:
        """A whole replica, as soon as one is idle: until then the least busy is given nothing new."""
        ...

    def unreserve(self) -> None:
        """Nobody wants a whole replica any more."""
        ...

    def room(self, slot: Slot) -> int:
        """How many slots of this one's replica are free."""
        ...

    def take(self, slot: Slot, places: int = 1) -> None:
        """A batch goes there, which takes so many slots; alone it takes them all."""
        ...

    def taken(self, slot: Slot) -> int:
        """How many slots of this one's replica are taken."""
        ...

    def release(self, slot: Slot, places: int = 1) -> None:
        """The batch came back, or so many jobs of it, or they never will. What ran alone gives all slots back."""
        ...

    def suspend(self, slot: Slot, now_s: float, *, for_s: float | None = None) -> None:
        """A call to this replica failed, or takes long: do not call it again at once (infinity: until it answers)."""
        ...

    def resume(self, slot: Slot) -> None:
        """A call to this replica came back."""
        ...

    def next_resume_s(self, now_s: float) -> float | None:
        """When the first suspended replica may be tried again."""
        ...

    def slowness(self, replica: str) -> float:
        """How many times as long as its pool this replica takes."""
        ...

    def learn_slowness(self, replica: str, ratio: float) -> None:
        """A batch there took `ratio` times as long as it would anywhere in its pool."""
        ...
