"""Replicas that have died and are named among the living: whoever is sent there is not to blame."""

from __future__ import annotations

from collections.abc import Set

import pytest

from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.lost_replicas import LostReplicas
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.slots.ledger import Slot

TICK_S = 0.25


def job(key: object) -> WaitingJob:
    return WaitingJob(key, 1, 1, 1, 0.0, None)


class Ghosts:
    """A pool of replicas, as a simulation, of which some died at the start; nobody says so for a while.

    Args:
        living: how many run batches, each in so many seconds.
        run_s: what a batch takes there.
        ghosts: names of those that died; a call to them fails at once.
        poison: jobs that kill whoever runs them, besides.
    """

    def __init__(self, living: int, run_s: float, ghosts: list[str], poison: Set[object] = frozenset()) -> None:
        self.scheduler = Scheduler(FormingPolicy(max_jobs=8))
        self.ghosts, self.poison, self.run_s = set(ghosts), poison, run_s
        self.answered: set[object] = set()
        self.convicted: set[object] = set()
        self._names = [f"r{number}" for number in range(living)] + ghosts
        self._out: list[tuple[float, list[WaitingJob], Slot]] = []
        self.scheduler.slots.update(self._names)

    def run(self, begin_s: float, end_s: float) -> None:
        """Let time pass."""
        for tick in range(int(begin_s / TICK_S), int(end_s / TICK_S)):
            self._step(tick * TICK_S)

    def _step(self, now_s: float) -> None:
        for done in [one for one in self._out if one[0] <= now_s]:
            self._out.remove(done)
            self._back(done[1], done[2], now_s)
        while (chosen := self.scheduler.next_batch(now_s)) is not None:
            jobs, slot = chosen
            takes_s = 0.0 if slot.replica in self.ghosts else self.run_s
            self._out.append((now_s + takes_s, jobs, slot))

    def _back(self, jobs: list[WaitingJob], slot: Slot, now_s: float) -> None:
        if slot.replica not in self.ghosts and not self.poison & {one.key for one in jobs}:
            self.scheduler.came_back(slot, now_s)
            self.answered |= {one.key for one in jobs}
            return
        self.ghosts.add(slot.replica)
        convicted = self.scheduler.failed(jobs, slot, now_s, died=True)
        if convicted is not None:
            self.convicted.add(convicted.key)

    def replace(self) -> None:
        """Serve has taken note of the dead, and started others."""
        self._names = [f"{name}'" if name in self.ghosts else name for name in self._names]
        self.ghosts.clear()
        self.scheduler.slots.update(self._names)


# -- as a tutorial --------------------------------------------------------------------------------------------------


def test_what_was_sent_after_a_death_never_ran() -> None:
    """Batches are numbered as they are sent. The second was out when the replica died, the third came too late."""
    lost = LostReplicas()
    first, second, third = (Slot("r0", idle=True, number=number) for number in (1, 2, 3))
    assert not lost.had_died(first)
    assert lost.died(first, sent=2)
    assert not lost.died(second, sent=3)
    assert (lost.had_died(second), lost.had_died(third)) == (False, True)
    lost.answered("r0")
    assert not lost.had_died(third)


@pytest.mark.parametrize(("living", "ghosts"), [(1, ["g0"]), (1, ["g0", "g1", "g2"]), (3, ["g0", "g1"]), (0, ["g0"])])
@pytest.mark.parametrize("run_s", [0.25, 1.5, 4.0])
def test_no_job_is_blamed_for_replicas_that_were_dead(living: int, ghosts: list[str], run_s: float) -> None:
    """Each second something is sent there; where the others are busy, that is who was to run alone."""
    pool = Ghosts(living, run_s, ghosts)
    for number in range(100):
        pool.scheduler.former.add(job(number))
    pool.run(0, 60)
    assert pool.convicted == set()
    assert pool.scheduler.deaths == len(ghosts), "each is counted once, however many batches were sent there"
    pool.replace()
    pool.run(60, 400)
    assert (pool.convicted, pool.answered) == (set(), set(range(100)))


def test_a_job_that_kills_is_found_all_the_same() -> None:
    """As soon as there are replicas for it to kill."""
    pool = Ghosts(2, 1.5, ["g0", "g1"], poison={7})
    for number in range(40):
        pool.scheduler.former.add(job(number))
    for minute in range(20):
        pool.run(60 * minute, 60 * (minute + 1))
        pool.replace()
    assert (pool.convicted, pool.answered) == ({7}, set(range(40)) - {7})


# -- edges ----------------------------------------------------------------------------------------------------------


def test_names_of_the_dead_are_not_kept_for_ever() -> None:
    lost = LostReplicas()
    for number in range(5000):
        lost.died(Slot(f"r{number}", idle=True, number=1), sent=1)
    assert len(lost._last) <= 1000
    assert lost.had_died(Slot("r4999", idle=True, number=2))
