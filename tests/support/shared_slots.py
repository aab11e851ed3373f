"""The routers of some models in one process, on one table of slots."""

from __future__ import annotations

from collections.abc import Callable

from headrace.messages.host import LoadedModel
from headrace_cluster.slots.ledger import Slot
from headrace_cluster.slots.shared_slots import SharedSlots

__all__ = ["MIB", "Routers"]

MIB = 1 << 20


class Routers:
    """Each asks for slots and gives them back, as its scheduler would.

    Args:
        models: one router each.
        replicas: of the pool: `pool/0` and on.
        places: how many batches of one model a replica may hold.
        clock: of the table; None: the routers' own.
    """

    def __init__(
        self, *models: str, replicas: int = 1, places: int = 2, clock: Callable[[], float] | None = None
    ) -> None:
        self.table = SharedSlots(clock=clock)
        self.woken: list[str] = []
        self.slots = {
            model: self.table.of_model(model, model=model, places=places, wake=self._waker(model)) for model in models
        }
        self.table.update([f"pool/{number}" for number in range(replicas)])

    def _waker(self, model: str) -> Callable[[], None]:
        return lambda: self.woken.append(model)

    def send(self, model: str, now_s: float = 0.0) -> str | None:
        """A batch of a model, if it gets a slot."""
        slot = self.slots[model].best(now_s)
        if slot is None:
            return None
        self.slots[model].take(slot)
        return slot.replica

    def back(self, model: str, replica: str, *loaded: str, ran_s: float = 0.1) -> None:
        """It comes back, and the replica says what it has."""
        rows = [LoadedModel(name, MIB, 1.0, ran_s) for name in loaded or (model,)]
        self.table.heard(replica, 2 * MIB, rows)
        self.slots[model].release(Slot(replica, idle=False))
