"""The slots of a pool that several models share: whose batch goes where, among the routers of one process.

Each model's scheduler asks for slots as it would ask a ledger of its own, through `ModelSlots`; all of them stand on
one table, which weighs three things:

*Affinity.* A batch goes where its model is loaded. If all such replicas are busy it waits for them, though no longer
than loading the model once more would take (ski rental): so a model that has more to do than its replicas can is soon
on several, and a lull does not spread it. A model that is loaded nowhere goes where that costs the others least: where
there is room, else where what has to go was used longest ago.

*Fairness.* Of those that wait and are loaded, the one that was served least is next (`ServedModels`), so nobody's flood
starves others; of those that are to be loaded, the one that waits longest.

*Loads are paid for.* As long as models wait that are loaded, and others that are not, each load is followed by a few
times its seconds of the former. Where all have more to do than can be done, each thus stays for a while once it is
loaded; otherwise a pool would load for every batch.

A part of a replica is taken by each batch, or by each job of a model that generates: whatever their kind, all parts
together are one. Pure: time comes in as an argument, and whoever may go on is woken by a callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Final

from headrace.messages.host import LoadedModel
from headrace_cluster.slots.host_memory import SharedReplica
from headrace_cluster.slots.model_slots import LEAST, ModelSlots
from headrace_cluster.slots.served_models import ServedModels
from headrace_cluster.slots.shared_replicas import SharedReplicas

__all__ = ["SharedSlots"]

_WORTH: Final = 2.0
"""How many times its own seconds a load is followed by batches of what is there, while both wait."""
_ANSWER_S: Final = 0.05
"""How long others wait for a model whose turn it is and that does not ask: its calls may be paused."""
_LOOK_AGAIN_S: Final = 1.0


class SharedSlots:
    """The slots of one shared pool, as one router process sees them.

    Args:
        suspension_s: how long a replica that failed a call is left alone, unless Serve removes it first.
        clock: tells the time. Each router has a clock of its own, that of its Redis server, and they differ; None: they
            are all right, as in a simulation.
    """

    def __init__(self, *, suspension_s: float = 1.0, clock: Callable[[], float] | None = None) -> None:
        self.suspension_s = suspension_s
        self._clock = clock
        self._served = ServedModels()
        self.replicas = SharedReplicas()
        self._claims: dict[ModelSlots, float] = {}
        self._woken: dict[ModelSlots, float] = {}
        self._active: set[ModelSlots] = set()
        self._ages = 0
        self._owed_s = 0.0
        self._some_there = self._some_cold = False
        self._now_s = 0.0

    def of_model(self, name: str, *, model: str, places: int, wake: Callable[[], None]) -> ModelSlots:
        """The slots as the router of a model sees them.

        Args:
            name: of the router: the model's, or a shard's.
            model: what has to be loaded.
            places: how many batches, or jobs, of it a replica may hold at once.
            wake: called when it may ask again.
        """
        return ModelSlots(self, name, self._served.of(model), places, wake)

    # -- what is known of the replicas --------------------------------------------------------------------------

    def update(self, replicas: Iterable[str]) -> None:
        """Serve's word on which replicas there are. A batch out at one that went still has to come back."""
        if self.replicas.update(replicas):
            self.wake_next()

    def heard(self, name: str, memory_bytes: int, loaded: Sequence[LoadedModel]) -> None:
        """A replica says what it has loaded, and for how long whose jobs ran there."""
        replica = self.replicas.get(name)
        if replica is None:
            return
        for told in loaded:
            model = self._served.of(told.name)
            self._served.loaded(model, told.bytes, told.load_s)
        coming = {view.model.name for view in self._active if view.name in replica.out}
        replica.loading.difference_update(told.name for told in loaded)
        ran = self.replicas.heard(replica, memory_bytes, loaded, coming=coming)
        for model_name, seconds in ran.items():
            self._served.ran(self._served.of(model_name), seconds)

    @property
    def active(self) -> int:
        """How many routers have something to do here."""
        return len(self._active)

    def time_s(self, now_s: float) -> float:
        """The time that counts here, when a router's clock says `now_s`."""
        return now_s if self._clock is None else self._clock()

    # -- whose turn it is ---------------------------------------------------------------------------------------

    def ask(self, view: ModelSlots, now_s: float) -> str | None:
        """The replica for a batch of a model; None if it has to wait, which it is woken from."""
        self._now_s = now_s
        self._woken.pop(view, None)
        if view not in self._active:
            self._served.comes(view.model)
            self._active.add(view)
        self._claims.setdefault(view, now_s)
        for claim, place in self._grants(now_s):
            if claim is view:
                self._claims.pop(view)
                return place
            self._wake(claim)
        return None

    def _grants(self, now_s: float) -> Iterator[tuple[ModelSlots, str]]:
        """Who gets which place, one after the other in the order of their turns, while anything is open."""
        open_ = self._open(now_s)
        loading = {name for name in open_ if self.replicas[name].loading}
        if not open_:
            return
        there, cold = self._waiting(open_, now_s)
        loads = not there or self._owed_s <= 0
        while open_ and (there or cold):
            line = cold if cold and (loads or not there) else there
            view = min(line, key=_turn) if line is there else min(line, key=self._came)
            line.remove(view)
            if self._is_silent(view, now_s):
                continue
            loads = loads and line is there
            place = self._place(view, open_, loading, there=line is there)
            if place is not None and open_[place] >= view.part - LEAST:
                yield view, place
            if place is not None:  # one that does not fit yet is saved up for
                self._speak_for(open_, place, view.part)
                loading.update([place] if line is cold else [])

    def _came(self, view: ModelSlots) -> tuple[float, str]:
        return self._claims[view], view.name

    def _open(self, now_s: float) -> dict[str, float]:
        """Which part of each replica is free, where any is."""
        return {
            replica.name: 1 - replica.load
            for replica in self.replicas
            if replica.load < 1 - LEAST and replica.reserved_for is None and replica.works(now_s)
        }

    def _waiting(self, open_: Mapping[str, float], now_s: float) -> tuple[list[ModelSlots], list[ModelSlots]]:
        """Those that wait and are loaded where something is open, and those that are to be loaded."""
        there, cold = [], []
        for view in self._claims:
            if not self.replicas.homes_of(view.model.name).isdisjoint(open_):
                there.append(view)
            elif now_s >= self.patient_until_s(view, now_s):
                cold.append(view)
        self._some_there, self._some_cold = bool(there), bool(cold)
        return there, cold

    def _speak_for(self, open_: dict[str, float], place: str, part: float) -> None:
        """A part of a replica is somebody's."""
        open_[place] -= part
        if open_[place] <= LEAST:
            del open_[place]

    def _place(
        self, view: ModelSlots, open_: Mapping[str, float], loading: Container[str], *, there: bool
    ) -> str | None:
        """The replica for a model: one where it is loaded, or the one where loading it costs the others least."""
        homes = self.replicas.homes_of(view.model.name)
        size_bytes = self._served.bytes_of(view.model)

        def price(name: str) -> tuple[bool, float, float, int, str]:
            memory = self.replicas[name].memory
            loss = 0.0 if there else memory.loss(size_bytes)
            return open_[name] < view.part - LEAST, loss, -open_[name], memory.used_bytes, name

        # A replica loads one model at a time: a second batch that waits for it would only keep others from its slot.
        fitting = [name for name in open_ if (name in homes if there else name not in loading)]
        return min(fitting, key=price, default=None)

    def patient_until_s(self, view: ModelSlots, now_s: float) -> float:
        """Until when a model waits for a replica that has it."""
        if not any(self.replicas[name].works(now_s) for name in self.replicas.homes_of(view.model.name)):
            return -math.inf
        return self._claims.get(view, now_s) + view.model.load_s

    def look_again_s(self, view: ModelSlots, now_s: float) -> float:
        """When a model that waits asks again though nobody has woken it; infinite if it does not wait."""
        if view not in self._claims:
            return math.inf
        patient_s = self.patient_until_s(view, now_s)
        return min(now_s + _LOOK_AGAIN_S, patient_s if patient_s > now_s else math.inf)

    def _is_silent(self, view: ModelSlots, now_s: float) -> bool:
        """Whether it was told that it is its turn, and has not asked since; then it waits no more."""
        if now_s - self._woken.get(view, now_s) < _ANSWER_S:
            return False
        self.withdraw(view)
        return True

    def withdraw(self, view: ModelSlots) -> None:
        """A model has nothing to send now."""
        self._claims.pop(view, None)
        self._woken.pop(view, None)
        if not view.in_flight:
            self._active.discard(view)

    def wake_next(self) -> None:
        """Something is free, perhaps: wake those whose turn it is."""
        if self._claims:
            for claim, _ in list(self._grants(self._now_s)):
                self._wake(claim)

    def _wake(self, view: ModelSlots) -> None:
        if view not in self._woken:
            self._woken[view] = self._now_s
            view.wake()

    # -- taking and giving back ---------------------------------------------------------------------------------

    def take(self, view: ModelSlots, replica: SharedReplica, places: int) -> None:
        """Batches, or jobs, of a model go to a replica."""
        self._settle_loads(view, replica)
        self._ages += 1
        replica.load += places * view.part
        replica.out[view.name] = replica.out.get(view.name, 0) + places
        self.replicas.used(replica, view.model.name, self._ages, self._served.bytes_of(view.model))
        self._served.sent(view.model, places)
        self._active.add(view)
        self._claims.pop(view, None)

    def _settle_loads(self, view: ModelSlots, replica: SharedReplica) -> None:
        """While some wait that are there, and others that are not, a load is followed by so much of what is there."""
        if view.model.name not in replica.memory:
            replica.loading.add(view.model.name)
            self._owed_s = _WORTH * view.model.load_s if self._some_there else 0.0
        else:
            self._owed_s = max(0.0, self._owed_s - view.model.batch_s * view.part) if self._some_cold else 0.0

    def release(self, view: ModelSlots, replica: SharedReplica, places: int) -> None:
        """They came back, or never will."""
        left = replica.out.pop(view.name) - places
        if left:
            replica.out[view.name] = left
        else:
            replica.loading.discard(view.model.name)
        replica.load = replica.load - places * view.part if replica.out else 0.0
        self._served.came_back(view.model, places)
        self.replicas.let_go(replica)
        self.wake_next()


def _turn(view: ModelSlots) -> tuple[float, str]:
    return view.model.turn_s, view.name
