"""The slots of a shared pool as the router of one of its models sees them, in place of a `SlotLedger`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from headrace_cluster.slots.host_memory import SharedReplica
from headrace_cluster.slots.ledger import Slot
from headrace_cluster.slots.served_models import ServedModel

if TYPE_CHECKING:
    from headrace_cluster.slots.shared_slots import SharedSlots

__all__ = ["LEAST", "ModelSlots"]

LEAST: Final = 1e-9
"""A part of a replica that is nothing: sums of parts are rounded."""


class ModelSlots:
    """The slots of a shared pool, for one model's router: what `SlotLedger` is for a pool of its own.

    Made by `SharedSlots.of_model`.
    """

    def __init__(
        self, table: SharedSlots, name: str, model: ServedModel, places: int, wake: Callable[[], None]
    ) -> None:
        self.name = name
        self.model = model
        self.per_replica = places
        self.part = 1 / places
        self.wake = wake
        self._table = table
        self._taken = 0
        self._reserved: SharedReplica | None = None

    def update(self, replicas: Iterable[str]) -> None:
        """Serve's word on which replicas there are."""
        self._table.update(replicas)

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        return sum(self._table.replicas.pools.values())

    @property
    def pools(self) -> Mapping[str, int]:
        """How many replicas each pool has: it is one pool."""
        return self._table.replicas.pools

    @property
    def predictable(self) -> bool:
        """When a batch comes back depends on what other models do there."""
        return False

    def capacity(self, pool: str) -> int:
        """How many batches, or jobs, of this model a replica may hold at once."""
        return self.per_replica

    # -- free slots ---------------------------------------------------------------------------------------------

    def best(self, now_s: float) -> Slot | None:
        """The slot a batch should go to, if it is this model's turn. It is not taken yet."""
        name = self._table.ask(self, self._table.time_s(now_s))
        replica = self._table.replicas.get(name) if name is not None else None
        return Slot(replica.name, idle=self.name not in replica.out) if replica is not None else None

    def best_of_pools(self, now_s: float) -> dict[str, Slot]:
        """The same by pools."""
        slot = self.best(now_s)
        return {slot.pool: slot} if slot is not None else {}

    def unwanted(self) -> None:
        """There is nothing to send now: others may go before this one."""
        self._table.withdraw(self)
        self._table.wake_next()

    def reserve(self, now_s: float, *, shunned: str | None = None) -> Slot | None:
        """A whole replica, as soon as nobody's batch is there: until then the least busy is given nothing new.

        Args:
            now_s: the time.
            shunned: a replica to take only if no other is idle.
        """
        now_s = self._table.time_s(now_s)
        ours = self._reserved if self._reserved is not None and self._reserved.works(now_s) else None
        present = [r for r in self._table.replicas.working(now_s) if r.reserved_for in (None, self.name)]
        if not present:
            return None
        best = min(present, key=lambda r: (bool(r.out), r.name == shunned, r is not ours, r.load, r.name))
        if ours is None or not best.out:
            self.unreserve()
            self._reserved, best.reserved_for = best, self.name
        return None if best.out else Slot(best.name, idle=True, alone=True)

    def unreserve(self) -> None:
        """This model wants no whole replica any more."""
        if self._reserved is not None:
            self._reserved.reserved_for, self._reserved = None, None
            self._table.wake_next()

    def room(self, slot: Slot) -> int:
        """How many batches, or jobs, of this model fit beside what its replica has."""
        replica = self._table.replicas.get(slot.replica)
        return math.floor((1 - replica.load) * self.per_replica + LEAST) if replica is not None else 0

    def taken(self, slot: Slot) -> int:
        """How many are taken there, by all models, as if all of them were this one's."""
        replica = self._table.replicas.get(slot.replica)
        return math.ceil(replica.load * self.per_replica - LEAST) if replica is not None else 0

    def take(self, slot: Slot, places: int = 1) -> None:
        """A batch goes there, which takes so many slots; alone it takes them all."""
        replica = self._table.replicas.get(slot.replica)
        assert replica is not None, f"{slot.replica} is gone"
        places = self.per_replica if slot.alone else places
        self._taken += places
        self._table.take(self, replica, places)

    def release(self, slot: Slot, places: int = 1) -> None:
        """The batch came back, or so many jobs of it, or they never will. What ran alone gives all slots back."""
        replica = self._table.replicas.get(slot.replica)
        if slot.alone and replica is not None and replica is self._reserved:
            self._reserved, replica.reserved_for = None, None
        places = self.per_replica if slot.alone else places
        if replica is not None and (places := min(places, replica.out.get(self.name, 0))):
            self._taken -= places
            self._table.release(self, replica, places)

    @property
    def in_flight(self) -> int:
        """How many slots this model has taken."""
        return self._taken

    def free(self, now_s: float) -> int:
        """How many slots this model may expect: its share of the free ones, among all models that have work."""
        parts = sum(1 - replica.load for replica in self._table.replicas.working(self._table.time_s(now_s)))
        return self._share(parts * self.per_replica)

    @property
    def ahead(self) -> int:
        """How many batches to read ahead of free slots."""
        return self._share(self.replicas)

    def _share(self, whole: float) -> int:
        return math.ceil(whole / max(1, self._table.active) - LEAST)

    # -- who is left alone --------------------------------------------------------------------------------------

    def suspend(self, slot: Slot, now_s: float, *, for_s: float | None = None) -> None:
        """A call to this replica failed, or takes long: nobody calls it again at once."""
        replica = self._table.replicas.get(slot.replica)
        if replica is not None:
            replica.suspended_until_s = self._table.time_s(now_s) + (
                self._table.suspension_s if for_s is None else for_s
            )

    def resume(self, slot: Slot) -> None:
        """A call to this replica came back."""
        replica = self._table.replicas.get(slot.replica)
        if replica is not None and replica.suspended_until_s != -math.inf:
            replica.suspended_until_s = -math.inf
            self._table.wake_next()

    def next_resume_s(self, now_s: float) -> float | None:
        """When to ask again without having been woken."""
        table_s = self._table.time_s(now_s)
        soonest_s = min(self._table.replicas.next_resume_s(table_s), self._table.look_again_s(self, table_s))
        return soonest_s - table_s + now_s if soonest_s < math.inf else None

    def slowness(self, replica: str) -> float:
        """Nobody can say how fast a replica is that does other work as well."""
        return 1.0

    def learn_slowness(self, replica: str, ratio: float) -> None:
        """Nothing is learned of it."""
