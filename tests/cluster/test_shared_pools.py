"""Many models on few replicas: who goes where, who is next, and how often models are loaded for it."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest

from headrace.messages.host import LoadedModel
from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.slots.ledger import Slot
from headrace_cluster.slots.model_slots import ModelSlots
from headrace_cluster.slots.shared_slots import SharedSlots
from support.shared_slots import MIB, Routers

# -- the tutorial ---------------------------------------------------------------------------------------------------


def test_a_model_goes_where_it_is_loaded() -> None:
    routers = Routers("a", "b", replicas=2)
    assert routers.send("a") == "pool/0"
    assert routers.send("b") == "pool/1"  # where nothing has to go for it
    routers.back("a", "pool/0")
    routers.back("b", "pool/1")
    assert routers.send("b") == "pool/1"
    assert routers.send("a") == "pool/0"


def test_a_model_that_is_loaded_nowhere_goes_where_what_must_go_was_used_longest_ago() -> None:
    """Each replica has room for two."""
    routers = Routers(*"abcde", replicas=2)
    for model, replica in (("a", "pool/0"), ("b", "pool/1"), ("c", "pool/0"), ("d", "pool/1")):
        assert routers.send(model) == replica
        routers.back(model, replica, *{"a": "a", "b": "b", "c": "ac", "d": "bd"}[model])
    assert routers.send("a") == "pool/0"
    routers.back("a", "pool/0", "c", "a")
    assert routers.send("e") == "pool/1"  # where b goes, which was used before c
    routers.back("e", "pool/1", "d", "e")
    assert routers.send("b") == "pool/0"  # and now c


def test_a_model_waits_for_its_replica_for_as_long_as_a_load_takes_and_then_gets_another() -> None:
    routers = Routers("hot", replicas=2)
    assert [routers.send("hot"), routers.send("hot")] == ["pool/0", "pool/0"]
    assert routers.send("hot", 0.0) is None
    assert routers.send("hot", 0.9) is None
    assert routers.slots["hot"].next_resume_s(0.9) == pytest.approx(1.0)
    assert routers.send("hot", 1.0) == "pool/1"


def test_who_was_served_least_is_next() -> None:
    """`flood` has had the replica for itself; `small` comes, and is next when a slot is free."""
    routers = Routers("flood", "small")
    routers.back("flood", routers.send("flood") or "", "flood", "small", ran_s=0.0)
    assert [routers.send("flood"), routers.send("flood")] == ["pool/0", "pool/0"]
    assert routers.send("flood") is None
    routers.back("flood", "pool/0", "flood", "small", ran_s=0.5)
    assert routers.woken[-1] == "flood"
    assert routers.send("flood") == "pool/0"
    assert routers.send("small") is None
    assert routers.send("flood") is None
    routers.woken.clear()
    routers.back("flood", "pool/0", "flood", "small", ran_s=1.0)
    assert routers.woken == ["small"]
    assert routers.send("flood") is None  # though it asks first
    assert routers.send("small") == "pool/0"


# -- a hundred models -----------------------------------------------------------------------------------------------

BATCH_S, JOB_S, LOAD_S = 0.004, 0.001, 0.2


class AnyPlace(SharedSlots):
    """Fair, but blind to what is loaded where."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice

    def _place(
        self, view: ModelSlots, open_: Mapping[str, float], loading: Container[str], *, there: bool
    ) -> str | None:
        return self._dice.choice(list(open_)) if open_ else None

    def _waiting(self, open_: Mapping[str, float], now_s: float) -> tuple[list[ModelSlots], list[ModelSlots]]:
        return list(self._claims), []


@dataclass
class Host:
    """A replica with room for eight models. It loads one after the other, and computes one batch after the other."""

    models: OrderedDict[str, None] = field(default_factory=OrderedDict)
    ran_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    loads_until_s: float = 0.0
    runs_until_s: float = 0.0

    def loaded_at(self, model: str, now_s: float) -> float:
        """When a batch's model is there."""
        there = model in self.models
        self.models[model] = None
        self.models.move_to_end(model)
        if len(self.models) > 8:
            self.models.popitem(last=False)
        if not there:
            self.loads_until_s = max(now_s, self.loads_until_s) + LOAD_S
        return now_s if there else self.loads_until_s

    def run_until(self, model: str, jobs: int, now_s: float) -> float:
        """When a batch whose model is there is done."""
        run_s = BATCH_S + JOB_S * jobs
        self.ran_s[model] += run_s
        self.runs_until_s = max(now_s, self.runs_until_s) + run_s
        return self.runs_until_s

    def told(self) -> list[LoadedModel]:
        return [LoadedModel(name, MIB, LOAD_S, self.ran_s[name]) for name in self.models]


class Simulation:
    """The schedulers of a hundred models on one table, and four hosts, under a simulated clock."""

    def __init__(self, table: SharedSlots, names: list[str]) -> None:
        self.hosts = {f"pool/{number}": Host() for number in range(4)}
        self.table = table
        self.now_s = 0.0
        self.loads, self.batches = 0, 0
        self.waits: dict[str, list[float]] = {name: [] for name in names}
        self.done_s: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.schedulers = {
            name: Scheduler(
                FormingPolicy(max_jobs=32),
                slots=table.of_model(
                    name, model=name, places=2, wake=partial(self.at, 0.0, partial(self.dispatch, name))
                ),
            )
            for name in names
        }
        table.update(self.hosts)

    def at(self, after_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + after_s, next(self._order), do))

    def submit(self, name: str) -> None:
        job = WaitingJob(key=name, tokens=10, bytes=100, priority=1, submitted_s=self.now_s)
        self.schedulers[name].former.note_arrivals(1, self.now_s)
        self.schedulers[name].former.add(job)
        self.dispatch(name)

    def dispatch(self, name: str) -> None:
        scheduler = self.schedulers[name]
        while (chosen := scheduler.next_batch(self.now_s)) is not None:
            jobs, slot = chosen
            loaded_s = self.hosts[slot.replica].loaded_at(name, self.now_s)
            self.batches += 1
            self.loads += loaded_s > self.now_s
            self.at(loaded_s - self.now_s, partial(self.compute, name, jobs, slot))
        if (wait_s := scheduler.wait_s(self.now_s)) is not None:
            self.at(wait_s, partial(self.dispatch, name))

    def compute(self, name: str, jobs: list[WaitingJob], slot: Slot) -> None:
        done_s = self.hosts[slot.replica].run_until(name, len(jobs), self.now_s)
        self.at(done_s - self.now_s, partial(self.back, name, jobs, slot))

    def back(self, name: str, jobs: list[WaitingJob], slot: Slot) -> None:
        host = self.hosts[slot.replica]
        self.waits[name] += [self.now_s - job.submitted_s for job in jobs]
        self.done_s[name] += JOB_S * len(jobs)
        self.table.heard(slot.replica, 8 * MIB, host.told())
        self.schedulers[name].came_back(slot, self.now_s)
        self.dispatch(name)

    def run(self, until_s: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, do = heapq.heappop(self._events)
            do()

    @property
    def reloads(self) -> int:
        """Loads of models that had been loaded before: those that a better place would have saved."""
        return self.loads - sum(1 for waits in self.waits.values() if waits)


NAMES = [f"m{number}" for number in range(100)]


def arrivals(jobs: int, per_s: float, skew: float) -> list[tuple[float, str]]:
    """Poisson in time, Zipf over the models."""
    dice = random.Random(1)
    weights = [1 / (rank + 1) ** skew for rank in range(len(NAMES))]
    time_s, found = 0.0, []
    for name in dice.choices(NAMES, weights, k=jobs):
        time_s += dice.expovariate(per_s)
        found.append((time_s, name))
    return found


def simulated(table: SharedSlots, jobs: int, per_s: float, skew: float = 1.0) -> Simulation:
    simulation = Simulation(table, NAMES)
    for time_s, name in arrivals(jobs, per_s, skew):
        simulation.at(time_s, partial(simulation.submit, name))
    simulation.run()
    return simulation


def test_models_are_loaded_three_times_less_often_than_by_chance() -> None:
    """Their traffic is skewed as a Zipf law of 1.4; at 1.0 it is two times."""
    ours = simulated(SharedSlots(), 1500, 20, skew=1.4)
    by_chance = simulated(AnyPlace(random.Random(2)), 1500, 20, skew=1.4)
    assert sum(map(len, ours.waits.values())) == sum(map(len, by_chance.waits.values())) == 1500
    assert 3 * ours.reloads < by_chance.reloads
    assert 1000 * ours.loads / ours.batches < 200


def test_nobody_starves_when_more_is_to_be_loaded_than_can_be() -> None:
    """A third of the jobs are for models that are not there, and four replicas load twenty a second at most."""
    simulation = simulated(SharedSlots(), 1500, 100)
    waits = sorted(wait for of_model in simulation.waits.values() for wait in of_model)
    assert len(waits) == 1500
    assert waits[-1] < 8
    assert max(statistics.mean(of_model) for of_model in simulation.waits.values() if of_model) < 6


def test_a_flood_of_one_model_costs_others_little_more_than_their_load() -> None:
    simulation = Simulation(SharedSlots(), NAMES)
    for _ in range(1500):
        simulation.schedulers["m0"].former.add(WaitingJob("m0", 10, 100, 1, submitted_s=0.0))
    simulation.dispatch("m0")
    for number, name in enumerate(NAMES[1:21]):
        simulation.at(0.01 * number, partial(simulation.submit, name))
    simulation.run()
    flood_s = max(simulation.waits["m0"])
    others = [wait for name in NAMES[1:21] for wait in simulation.waits[name]]
    assert len(others) == 20
    assert max(others) < 6 * LOAD_S
    assert flood_s > 0.4


def test_where_everybody_has_too_much_to_do_a_model_stays_for_a_while() -> None:
    """Else each of the five hundred batches would load."""
    simulation = Simulation(SharedSlots(), NAMES)
    for name in NAMES:
        for _ in range(160):
            simulation.schedulers[name].former.add(WaitingJob(name, 10, 100, 1, submitted_s=0.0))
    for name in NAMES:
        simulation.dispatch(name)
    simulation.run()
    assert sum(simulation.done_s.values()) == pytest.approx(JOB_S * 160 * 100)
    assert simulation.loads < 2 * len(NAMES)


# -- edges ----------------------------------------------------------------------------------------------------------


def test_a_model_whose_turn_it_is_and_that_does_not_ask_is_not_waited_for_long() -> None:
    """Its calls may be paused, and it has no way to say so."""
    routers = Routers("a", "silent")
    first = routers.send("a")
    assert first is not None
    routers.send("a")
    assert routers.send("silent") is None
    assert routers.send("a") is None
    routers.table._served.ran(routers.table._served.of("a"), 9.0)
    routers.back("a", first, "a", "silent")
    assert routers.woken == ["silent"]
    assert routers.send("a", 0.01) is None
    assert routers.send("a", 0.06) == first


def test_who_has_nothing_to_send_lets_others_go_before() -> None:
    routers = Routers("a", "b")
    first = routers.send("a")
    assert first is not None
    routers.send("a")
    for model in "ba":
        assert routers.send(model) is None
    routers.table._served.ran(routers.table._served.of("a"), 9.0)
    routers.back("a", first, "a", "b")
    assert routers.woken == ["b"]
    routers.slots["b"].unwanted()
    assert routers.woken == ["b", "a"]
    assert routers.send("a") == first


def test_suspects_of_one_model_have_a_replica_to_themselves() -> None:
    routers = Routers("a", "b", replicas=2)
    assert routers.send("a") == "pool/0"
    assert routers.send("b") == "pool/1"
    suspects = routers.slots["a"]
    assert suspects.reserve(0.0) is None
    routers.back("b", "pool/1")
    slot = suspects.reserve(0.0)
    assert slot == Slot("pool/1", idle=True, alone=True)
    suspects.take(slot)
    assert suspects.taken(slot) == 2
    assert routers.send("b", 5.0) is None  # where it is loaded nobody else may go now
    suspects.release(slot)
    assert routers.slots["a"].in_flight == 1
    assert routers.send("b", 5.1) == "pool/1"


def test_a_replica_that_dies_takes_nobody_elses_slots_along() -> None:
    routers = Routers("a", "b", replicas=2)
    assert routers.send("a") == "pool/0"
    routers.table.update(["pool/1", "pool/2"])
    assert routers.slots["a"].replicas == 2
    assert routers.slots["a"].in_flight == 1
    routers.slots["a"].release(Slot("pool/0", idle=True))
    assert routers.slots["a"].in_flight == 0
    assert routers.table.replicas.get("pool/0") is None
    assert routers.send("a") == "pool/1"  # no waiting for one that is gone


def test_a_replica_that_failed_is_left_alone_by_all() -> None:
    routers = Routers("a", "b")
    routers.slots["a"].suspend(Slot("pool/0", idle=True), 0.0)
    assert routers.send("b", 0.5) is None
    assert routers.slots["b"].next_resume_s(0.5) == 1.0
    assert routers.send("b", 1.0) == "pool/0"


def test_jobs_that_generate_and_batches_take_their_parts_of_one_replica() -> None:
    table = SharedSlots()
    words = table.of_model("words", model="words", places=10, wake=lambda: None)
    texts = table.of_model("texts", model="texts", places=2, wake=lambda: None)
    table.update(["pool/0"])
    slot = words.best(0.0)
    assert slot is not None
    assert words.room(slot) == 10
    words.take(slot, 4)
    assert words.room(slot) == 6
    assert texts.room(slot) == 1
    table.heard("pool/0", 4 * MIB, [LoadedModel("words", MIB, 0.0, 0.0)])
    half = texts.best(0.0)
    assert half is not None
    texts.take(half)
    assert (words.room(slot), texts.room(slot)) == (1, 0)
    words.take(slot, 1)
    assert words.best(0.0) is None
    texts.release(half)
    words.release(slot, 5)
    assert words.room(slot) == 10


def test_room_is_saved_up_for_a_batch_that_is_next() -> None:
    """Else jobs that each take a tenth would fill every gap before half of the replica is free."""
    table, woken = SharedSlots(), list[str]()
    words = table.of_model("words", model="words", places=10, wake=lambda: woken.append("words"))
    texts = table.of_model("texts", model="texts", places=2, wake=lambda: woken.append("texts"))
    table.update(["pool/0"])
    slot = words.best(0.0)
    assert slot is not None
    words.take(slot, 10)
    table.heard("pool/0", 4 * MIB, [LoadedModel("words", MIB, 0.0, 0.0), LoadedModel("texts", MIB, 0.0, 0.0)])
    table.heard("pool/0", 4 * MIB, [LoadedModel("texts", MIB, 0.0, 0.0), LoadedModel("words", MIB, 0.0, 5.0)])
    assert texts.best(0.0) is None
    words.release(slot, 3)
    assert words.best(0.0) is None
    assert woken == []
    words.release(slot, 2)
    assert woken == ["texts"]
    assert texts.best(0.0) == Slot("pool/0", idle=True)


def test_what_a_router_reads_ahead_is_its_share() -> None:
    routers = Routers(*NAMES, replicas=4)
    assert (routers.slots["m0"].free(0.0), routers.slots["m0"].ahead) == (8, 4)
    for name in NAMES:
        routers.send(name)
    assert (routers.slots["m0"].free(0.0), routers.slots["m0"].ahead) == (1, 1)


def test_all_slots_are_free_when_everything_has_come_back() -> None:
    """Whatever happened in between."""
    dice = random.Random(3)
    routers = Routers(*NAMES[:12], replicas=3)
    out: list[tuple[str, str]] = []
    now_s = 0.0
    for _ in range(3000):
        now_s += 0.02
        name = dice.choice(NAMES[:12])
        what = dice.random()
        if what < 0.5 and (replica := routers.send(name, now_s)) is not None:
            out.append((name, replica))
        elif what < 0.9 and out:
            routers.back(*out.pop(dice.randrange(len(out))))
        elif what < 0.95:
            routers.slots[name].unwanted()
        elif what < 0.97:
            routers.table.update(dice.sample(["pool/0", "pool/1", "pool/2", "pool/3"], 3))
    for name, replica in out:
        routers.back(name, replica)
    for slots in routers.slots.values():
        slots.unwanted()
        assert slots.in_flight == 0
    assert routers.table.active == 0
    assert routers.slots["m0"].free(now_s) == 6
    homes = {name: set(replicas) for name, replicas in routers.table.replicas._homes.items() if replicas}
    known = [found for number in range(4) if (found := routers.table.replicas.get(f"pool/{number}")) is not None]
    assert homes == {m: {r.name for r in known if m in r.memory} for r in known for m in r.memory.models}
