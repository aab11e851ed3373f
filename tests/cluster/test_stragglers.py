"""Batches that are late: who is, who is not, and what a router does about it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headrace import AsyncClient, Job
from headrace_cluster.pools.port import ReplicaLostError
from headrace_cluster.router.flight import Race
from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.scheduling.stragglers import BatchesOut, BatchOut
from headrace_cluster.slots.ledger import Slot
from support.bad_days import RecordingEngine
from support.local_pool import Runs
from support.routing import MODEL, assert_all_accounted_for, outputs_of, policy
from support.service import PlainService
from support.waiting import eventually


def out_at(replica: str, number: int, *, run_s: float = 1.0, due_s: float = 1.0, measured: bool = True) -> BatchOut:
    return BatchOut(Slot(replica, idle=True, number=number), [], run_s, due_s, measured=measured)


def looked(out: BatchesOut, until_s: float, *, from_s: float = 0.0) -> dict[str, float]:
    """When each replica was found late, by looking four times a second."""
    found = {}
    for tick in range(int(4 * from_s), int(4 * until_s) + 1):
        for batch in out.look(tick / 4):
            found[batch.slot.replica] = tick / 4
    return found


# -- who is late -------------------------------------------------------------------------------------------------------


def test_late_is_who_takes_several_times_as_long_as_predicted() -> None:
    out = BatchesOut()
    out.add(out_at("long", 1, run_s=2.0, due_s=2.0))
    out.add(out_at("short", 2, run_s=0.01, due_s=0.01))

    assert looked(out, 20) == {"short": 1.25, "long": 8.25}


def test_by_a_guess_nobody_is_late() -> None:
    out = BatchesOut()
    out.add(out_at("new", 1, measured=False))
    assert looked(out, 1000) == {}


def test_whoever_is_late_is_late_once() -> None:
    out = BatchesOut()
    out.add(out_at("a", 1))
    assert looked(out, 10) == {"a": 4.25}
    assert looked(out, 20, from_s=10) == {}
    assert [batch.slot.replica for batch in out.to_hedge()] == ["a"]


@pytest.mark.parametrize("jump_s", [600.0, -600.0])
def test_time_that_nobody_saw_counts_for_nobody(jump_s: float) -> None:
    """The process was stopped, Redis was away, or a clock jumped."""
    out = BatchesOut()
    assert looked(out, 10) == {}
    out.add(out_at("a", 1, due_s=10.5))

    assert looked(out, jump_s + 12, from_s=jump_s + 10) == {}
    assert looked(out, jump_s + 15, from_s=jump_s + 12) == {"a": jump_s + 13.75}


def test_who_stood_behind_a_late_one_has_its_turn_when_that_is_back() -> None:
    out = BatchesOut()
    first, second = out_at("a", 1, due_s=1.0), out_at("a", 2, due_s=2.0)
    out.add(first)
    out.add(second)
    assert out.free_s("a", 0.0) == 2.0
    out.remove(first.slot, 4.0)

    assert out.free_s("a", 4.0) == second.due_s == 5.0
    assert looked(out, 8, from_s=4) == {}
    out.remove(second.slot, 8.0)
    out.remove(second.slot, 8.0)
    assert len(out) == 0
    assert out.free_s("a", 9.0) == 9.0


# -- what the scheduler does -------------------------------------------------------------------------------------------


def scheduler_of(*replicas: str) -> Scheduler:
    """Its batches are known to take 0.1 s."""
    scheduler = Scheduler(FormingPolicy(max_jobs=4))
    scheduler.slots.update(replicas)
    for _ in range(10):
        scheduler.costs.learn("", 4, 4, 0.1)
    return scheduler


def batch_of(scheduler: Scheduler, now_s: float, *, attempts: int = 0) -> Slot:
    for n in range(4):
        scheduler.former.add(WaitingJob(n, 1, 1, 1, 0.0, attempts=attempts))
    chosen = scheduler.next_batch(now_s)
    assert chosen is not None
    return chosen[1]


def late(scheduler: Scheduler, *, now_s: float = 0.0) -> float:
    """Let two seconds pass; returns the time."""
    for tick in range(1, 9):
        scheduler.look_for_stragglers(now_s + tick / 4)
    return now_s + 2


def test_a_late_batch_is_sent_to_another_replica_as_well() -> None:
    scheduler = scheduler_of("a", "b")
    slot = batch_of(scheduler, 0.0)
    assert scheduler.next_hedge(0.5) is None
    now_s = late(scheduler)
    hedge = scheduler.next_hedge(now_s)

    assert hedge is not None
    assert (hedge[0].slot, hedge[1].replica) == (slot, "b")
    assert [job.key for job in hedge[0].jobs] == [0, 1, 2, 3]
    assert scheduler.slots.in_flight == 2
    assert scheduler.next_hedge(now_s) is None, "once"
    assert scheduler.next_hedge(late(scheduler, now_s=now_s)) is None, "nor is the second one hedged"


def test_who_is_late_gets_nothing_new_until_it_answers() -> None:
    scheduler = scheduler_of("a")
    slot = batch_of(scheduler, 0.0)
    now_s = late(scheduler)
    assert scheduler.slots.best(now_s + 1e6) is None
    assert scheduler.slots.next_resume_s(now_s) is None
    assert scheduler.wait_s(now_s) is None
    scheduler.came_back(slot, now_s)

    assert scheduler.slots.best(now_s) is not None


def test_suspects_are_never_hedged() -> None:
    """Whatever they do to a replica they would do to two."""
    scheduler = scheduler_of("a", "b")
    batch_of(scheduler, 0.0, attempts=1)
    assert scheduler.next_hedge(late(scheduler)) is None

    scheduler = scheduler_of("a", "b")
    scheduler.quarantine.add([WaitingJob(0, 1, 1, 1, 0.0)])
    assert scheduler.next_batch(0.0) is not None
    assert scheduler.next_hedge(late(scheduler)) is None


def test_jobs_that_end_one_by_one_are_never_late_by_prediction() -> None:
    """One may generate a hundred times as much as another."""
    scheduler = Scheduler(FormingPolicy(), jobs_per_replica=4)
    scheduler.slots.update(["a", "b"])
    for _ in range(20):
        scheduler.learn(Slot("a", idle=True), 1, 10, 0.1)
    batch_of(scheduler, 0.0)

    assert scheduler.next_hedge(late(scheduler)) is None
    assert scheduler.slots.free(2.0) == 4


def test_a_straggler_that_is_killed_blames_nobody() -> None:
    scheduler = scheduler_of("a", "b")
    slot = batch_of(scheduler, 0.0)
    now_s = late(scheduler)
    hedge = scheduler.next_hedge(now_s)
    assert hedge is not None
    scheduler.came_back(hedge[1], now_s)
    scheduler.given_up(slot, now_s, died=True)

    assert len(scheduler.quarantine) == len(scheduler.out) == scheduler.slots.in_flight == 0
    assert scheduler.slots.free(math.inf) == 4


def test_of_two_that_run_the_same_the_first_word_counts() -> None:
    some = [WaitingJob(n, 1, 1, 1, 0.0) for n in range(3)]
    race = Race(some)
    assert race.settle(some[1])
    assert not race.settle(some[1])
    assert race.left == [some[0], some[2]]


# -- and the router ----------------------------------------------------------------------------------------------------


class Stalling:
    """A replica that answers as ever, until it is told to stall: then only when it is let go, or dies."""

    def __init__(self, replica: Runs) -> None:
        self._replica = replica
        self.stalls = False
        self.stalled = 0
        self.dies = False
        self.go_on = asyncio.Event()

    async def run(self, message: bytes) -> bytes:
        if self.stalls:
            self.stalled += 1
            await self.go_on.wait()
            if self.dies:
                raise ReplicaLostError("killed")
        return await self._replica.run(message)


@asynccontextmanager
async def stalling(url: str, **fields: object) -> AsyncIterator[tuple[PlainService, Stalling]]:
    """A service of two replicas, warm, one of which stalls from now on."""
    service = PlainService(url, MODEL, RecordingEngine(), RecordingEngine(), policy=policy(**fields))
    replica = Stalling(service.replicas["replica-0"])
    service.pool.replicas = {"replica-0": replica, "replica-1": service.replicas["replica-1"]}
    async with service, AsyncClient(url) as client:
        for n in range(12):
            await client.run(Job(model=MODEL, input=n), timeout_s=5)
        replica.stalls = True
        try:
            yield service, replica
        finally:
            replica.go_on.set()


async def answered(client: AsyncClient, replica: Stalling) -> int:
    """Answer jobs until one was stalled: how many. Forty may be one batch, and the other replica's."""
    count = 0
    while not replica.stalled:
        some = [Job(model=MODEL, input=n) for n in range(40)]
        assert await outputs_of(client, some) == list(range(40))
        count += len(some)
    return count


async def test_what_a_replica_does_not_answer_another_does(redis_url: str) -> None:
    """Each job once: what comes of the first is dropped."""
    async with stalling(redis_url) as (service, replica), AsyncClient(redis_url) as client:
        submitted = 12 + await answered(client, replica)
        counts = service.router.counts
        assert counts.hedged >= 1
        assert service.pool.killed == []
        replica.stalls = False
        replica.go_on.set()
        await eventually(lambda: counts.late > 0 and service.router.scheduler.slots.in_flight == 0)
        await assert_all_accounted_for(client, submitted)
        assert counts.answered == submitted
        assert counts.returned == 0
        assert service.router.scheduler.slots.free(math.inf) == 4, "and it has its slots again"


async def test_a_straggler_that_dies_after_all_takes_nobody_with_it(redis_url: str) -> None:
    async with stalling(redis_url) as (service, replica), AsyncClient(redis_url) as client:
        replica.dies = True
        submitted = 12 + await answered(client, replica)
        replica.go_on.set()
        await eventually(lambda: service.router.counts.replica_deaths == 1)
        assert service.router.counts.returned == 0
        assert len(service.router.scheduler.quarantine) == 0
        await assert_all_accounted_for(client, submitted)


async def test_if_both_die_the_batch_is_suspected(redis_url: str) -> None:
    """As ever: nothing is lost, and whoever kills is found."""
    async with stalling(redis_url) as (service, replica), AsyncClient(redis_url) as client:
        other = Stalling(service.pool.replicas["replica-1"])
        service.pool.replicas["replica-1"] = other
        other.stalls = replica.dies = other.dies = True
        receipt = await client.submit(Job(model=MODEL, input="last"))
        await eventually(lambda: replica.stalled == other.stalled == 1)
        replica.stalls = other.stalls = False
        replica.go_on.set()
        await eventually(lambda: service.router.counts.replica_deaths == 1)
        assert service.router.counts.returned == 0, "the other has it"
        other.go_on.set()

        assert (await client.result(receipt, timeout_s=10)).ok
        assert service.router.counts.returned == 1
        await assert_all_accounted_for(client, 13)
