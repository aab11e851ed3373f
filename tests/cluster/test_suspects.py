"""Finding the job that kills replicas: halving, running alone, convicting; and the breaker behind it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.breaker import Breaker
from headrace_cluster.scheduling.quarantine import Quarantine
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.slots.ledger import Slot, SlotLedger


def job(key: object, *, deadline_s: float | None = None) -> WaitingJob:
    return WaitingJob(key, 1, 1, 1, 0.0, deadline_s)


class Pool:
    """Replicas that die of poison and are replaced, as a simulation: a batch takes a second, a start three."""

    def __init__(self, scheduler: Scheduler, replicas: int, poison: set[object]) -> None:
        self.scheduler = scheduler
        self.poison = poison
        self.answered: list[object] = []
        self.convicted: list[object] = []
        self.deaths = 0
        self.together: list[int] = []
        self._serial = replicas
        self._out: list[tuple[float, list[WaitingJob], Slot]] = []
        self._living = [f"r{n}" for n in range(replicas)]
        self._starting: list[tuple[float, str]] = []
        scheduler.slots.update(self._living)

    def run(self, seconds: int) -> None:
        for tick in range(seconds * 4):
            self._step(tick / 4)

    def _step(self, now_s: float) -> None:
        for start_s, name in [one for one in self._starting if one[0] <= now_s]:
            self._starting.remove((start_s, name))
            self._living.append(name)
            self.scheduler.slots.update(self._living)
        for done in [one for one in self._out if one[0] <= now_s]:
            if done in self._out:  # else its replica died a moment ago
                self._finish(*done, now_s)
        while (chosen := self.scheduler.next_batch(now_s)) is not None:
            self._out.append((now_s + 1, *chosen))

    def _finish(self, done_s: float, jobs: list[WaitingJob], slot: Slot, now_s: float) -> None:
        self._out.remove((done_s, jobs, slot))
        if not self.poison.intersection(one.key for one in jobs):
            self.scheduler.came_back(slot)
            self.answered += [one.key for one in jobs]
            return
        self.deaths += 1
        self._living.remove(slot.replica)
        self._starting.append((now_s + 3, f"r{self._serial}"))
        self._serial += 1
        self.scheduler.slots.update(self._living)
        lost = [(jobs, slot), *((jobs, s) for _, jobs, s in self._out if s.replica == slot.replica)]
        self.together.append(len(lost))
        self._out = [one for one in self._out if one[2].replica != slot.replica]
        for gone, of in lost:
            convicted = self.scheduler.failed(gone, of, now_s, died=True)
            if convicted is not None:
                self.convicted.append(convicted.key)


# -- one poison job ------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.data(), st.integers(1, 4))
def test_one_poison_job_costs_few_replicas_and_no_innocent(size: int, data: st.DataObject, replicas: int) -> None:
    """At most log2 of the batch plus two deaths, whoever it is and wherever it stands."""
    poison = data.draw(st.integers(0, size - 1))
    scheduler = Scheduler(FormingPolicy(max_jobs=64))
    pool = Pool(scheduler, replicas, {poison})
    for n in range(size):
        scheduler.former.add(job(n))
    pool.run(200)

    assert pool.convicted == [poison]
    assert sorted(pool.answered) == [n for n in range(size) if n != poison]  # type: ignore[type-var]
    assert pool.deaths <= math.ceil(math.log2(min(size, 64))) + 2


def test_several_poison_jobs_in_one_batch() -> None:
    scheduler = Scheduler(FormingPolicy(max_jobs=64))
    pool = Pool(scheduler, 2, {3, 17, 40})
    for n in range(64):
        scheduler.former.add(job(n))
    pool.run(600)

    assert sorted(pool.convicted) == [3, 17, 40]  # type: ignore[type-var]
    assert len(pool.answered) == 61


def test_other_work_goes_on_meanwhile() -> None:
    """With one replica, suspects and other batches take turns."""
    scheduler = Scheduler(FormingPolicy(max_jobs=16))
    pool = Pool(scheduler, 1, {0})
    for n in range(16):
        scheduler.former.add(job(n))
    pool.run(2)
    for n in range(100, 148):
        scheduler.former.add(job(n))
    pool.run(30)

    assert set(range(100, 148)) <= set(pool.answered)


def test_only_what_fails_alone_counts() -> None:
    quarantine = Quarantine()
    quarantine.add([job(n) for n in range(4)])
    assert len(quarantine) == 4
    group = quarantine.take()
    assert [one.key for one in group] == [0, 1]
    assert quarantine.failed(group, "r0") is None
    assert [one.lone_failures for one in group] == [0, 0]


def test_a_lone_suspect_avoids_the_replica_it_failed_on() -> None:
    """It may have been the replica."""
    scheduler = Scheduler(FormingPolicy())
    scheduler.slots.update(["bad", "good"])
    scheduler.quarantine.add([job(1)])
    jobs, slot = scheduler.next_batch(0.0) or pytest.fail("nothing was sent")
    assert scheduler.failed(jobs, slot, 0.0, died=True) is None

    _, again = scheduler.next_batch(100.0) or pytest.fail("nothing was sent")
    assert {slot.replica, again.replica} == {"bad", "good"}


def test_who_has_not_failed_alone_goes_before_who_has() -> None:
    quarantine = Quarantine()
    quarantine.add([job("killer")])
    quarantine.add([job("first")])
    assert quarantine.failed(quarantine.take(), "r0") is None
    quarantine.add([job("second")])
    assert [quarantine.take()[0].key for _ in range(3)] == ["first", "second", "killer"]
    assert quarantine.take() == []


def test_suspects_expire_and_are_called_off_like_others() -> None:
    quarantine = Quarantine()
    jobs = [job(n, deadline_s=float(n)) for n in range(4)]
    quarantine.add(jobs)

    assert quarantine.expired(1.0) == jobs[:2]
    assert quarantine.discard([jobs[3], job("other")]) == [jobs[3]]
    assert [quarantine.take(), quarantine.take()] == [[jobs[2]], []]


# -- whole replicas ------------------------------------------------------------------------------------------------


def test_a_suspect_has_its_replica_to_itself() -> None:
    ledger = SlotLedger(per_replica=2)
    ledger.update(["a"])
    slot = ledger.reserve(0.0)
    assert slot == Slot("a", idle=True, alone=True)
    ledger.take(slot)
    assert ledger.best(0.0) is None
    assert ledger.free(0.0) == 0
    ledger.release(slot)
    assert ledger.free(0.0) == 2


def test_a_busy_replica_is_kept_free_until_it_is_idle() -> None:
    ledger = SlotLedger(per_replica=2)
    ledger.update(["a"])
    busy = ledger.best(0.0)
    assert busy is not None
    ledger.take(busy)
    assert ledger.reserve(0.0) is None
    assert ledger.best(0.0) is None, "nothing new for the one that is reserved"
    ledger.release(busy)
    assert ledger.reserve(0.0) is not None
    ledger.unreserve()
    assert ledger.best(0.0) is not None


# -- the breaker ---------------------------------------------------------------------------------------------------


def test_it_opens_when_replicas_die_too_often() -> None:
    breaker = Breaker(deaths=3, over_s=60, pause_s=2)
    for n in range(3):
        assert breaker.allows(float(n), in_flight=5)
        breaker.died(f"r{n}", float(n))

    assert not breaker.closed
    assert not breaker.allows(3.9, in_flight=0)
    assert breaker.retry_at_s() == 4.0
    assert breaker.allows(4.0, in_flight=0), "one batch is let through"
    assert not breaker.allows(4.0, in_flight=1), "and only one"


def test_each_death_while_half_open_doubles_the_pause() -> None:
    breaker = Breaker(deaths=1, pause_s=2, longest_pause_s=10)
    until = []
    now_s = 0.0
    for n in range(5):
        breaker.died(f"r{n}", now_s)
        retry_at_s = breaker.retry_at_s()
        assert retry_at_s is not None
        until.append(retry_at_s - now_s)
        now_s = retry_at_s

    assert until == [2, 4, 8, 10, 10]


def test_one_batch_that_comes_back_closes_it() -> None:
    breaker = Breaker(deaths=1)
    breaker.died("r", 0.0)
    breaker.answered()
    assert breaker.closed
    assert breaker.allows(0.0, in_flight=9)


def test_a_replica_dies_once() -> None:
    """However many batches it had."""
    breaker = Breaker(deaths=2)
    breaker.died("r", 0.0)
    breaker.died("r", 0.0)
    assert breaker.closed


def test_deaths_of_long_ago_do_not_count() -> None:
    breaker = Breaker(deaths=2, over_s=60)
    breaker.died("r1", 0.0)
    breaker.died("r2", 61.0)
    assert breaker.closed
