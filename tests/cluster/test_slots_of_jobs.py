"""Replicas whose jobs end one by one: slots counted in jobs, and what is made of a death in the middle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.messages import Fate, JobOutcomes
from headrace_cluster.router.flight import Flight
from headrace_cluster.scheduling.batch_former import BatchFormer, FormingPolicy, WaitingJob
from headrace_cluster.scheduling.credit import CreditPolicy, entries_to_read
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.slots.ledger import Slot


def job(key: object = 0, *, tokens: int = 1, tenant: str = "", priority: int = 1) -> WaitingJob:
    return WaitingJob(key, tokens, 1, priority, 0.0, tenant=tenant)


def scheduler_of(jobs: int, *, slots: int = 4, replicas: int = 1) -> Scheduler:
    scheduler = Scheduler(FormingPolicy(), jobs_per_replica=slots)
    scheduler.slots.update([f"r{n}" for n in range(replicas)])
    for n in range(jobs):
        scheduler.former.add(job(n))
    return scheduler


def dispatched(scheduler: Scheduler, now_s: float = 10.0) -> list[tuple[list[WaitingJob], Slot]]:
    """Everything that can go now."""
    chosen = []
    while (batch := scheduler.next_batch(now_s)) is not None:
        chosen.append(batch)
    return chosen


# -- slots -------------------------------------------------------------------------------------------------------------


def test_a_batch_is_as_large_as_there_are_slots() -> None:
    scheduler = scheduler_of(10, slots=4)
    [(jobs, slot)] = dispatched(scheduler)

    assert [one.key for one in jobs] == [0, 1, 2, 3]
    assert scheduler.slots.room(slot) == 0


def test_each_job_that_ends_makes_room_for_another() -> None:
    """It joins those that run: it need not wait until the replica is idle, nor until it fills a batch."""
    scheduler = scheduler_of(6, slots=4)
    [(_, slot)] = dispatched(scheduler)
    scheduler.ended(1, slot, left=3)
    [(next_jobs, _)] = dispatched(scheduler)

    assert [one.key for one in next_jobs] == [4]


def test_jobs_that_end_together_make_room_for_as_many() -> None:
    scheduler = scheduler_of(9, slots=4)
    [(_, slot)] = dispatched(scheduler)
    scheduler.ended(3, slot, left=1)
    [(next_jobs, _)] = dispatched(scheduler)

    assert [one.key for one in next_jobs] == [4, 5, 6]


def test_jobs_go_where_least_run() -> None:
    scheduler = scheduler_of(6, slots=4, replicas=2)
    batches = dispatched(scheduler)

    assert [(len(jobs), slot.replica) for jobs, slot in batches] == [(4, "r0"), (2, "r1")]


def test_what_is_refused_or_not_sent_gives_back_as_many_slots_as_it_took() -> None:
    scheduler = scheduler_of(4, slots=4)
    [(jobs, slot)] = dispatched(scheduler)
    scheduler.refused(jobs, slot, 10.0)
    assert scheduler.slots.in_flight == 0
    [(jobs, slot)] = dispatched(scheduler, 11.0)
    scheduler.not_sent(jobs, slot, 11.0)
    assert scheduler.slots.in_flight == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_slots_are_never_taken_twice_nor_lost(moves: list[tuple[int, bool]]) -> None:
    """Whatever ends, dies and comes: those that run and those that are free add up."""
    scheduler, now_s, out = scheduler_of(30, slots=5, replicas=2), 10.0, list[tuple[list[WaitingJob], Slot]]()
    for which, dies in moves:
        now_s += 5.0
        out += dispatched(scheduler, now_s)
        if which < len(out):
            jobs, slot = out[which]
            if dies:
                del out[which]
                scheduler.failed(jobs, slot, now_s, died=True, computed=True)
            else:
                jobs.pop()
                scheduler.ended(1, slot, left=len(jobs))
                out = [one for one in out if one[0]]
        alone = sum(5 - len(jobs) for jobs, slot in out if slot.alone)
        assert scheduler.slots.in_flight == sum(len(jobs) for jobs, _ in out) + alone


# -- deaths ------------------------------------------------------------------------------------------------------------


def test_a_first_death_in_the_middle_is_nobody_s_fault() -> None:
    scheduler = scheduler_of(4)
    [(jobs, slot)] = dispatched(scheduler)
    assert scheduler.failed(jobs, slot, 10.0, died=True, computed=True) is None

    assert len(scheduler.quarantine) == 0
    [(again, slot)] = dispatched(scheduler, 20.0)
    assert again == jobs
    assert not slot.alone


@pytest.mark.parametrize("computed", [False, True])
def test_a_second_death_makes_suspects(computed: bool) -> None:
    """So does a first, if nothing was ever computed with them: who dies at once is looked at at once."""
    scheduler = scheduler_of(4)
    for n in range(1 + computed):
        scheduler.slots.update([f"life {n}"])
        [(jobs, slot)] = dispatched(scheduler, 10.0 * (n + 1))
        scheduler.failed(jobs, slot, 10.0 * (n + 1), died=True, computed=computed)

    assert len(scheduler.quarantine) == 4
    [(_, slot)] = dispatched(scheduler, 40.0)
    assert slot.alone


def test_an_exception_of_the_engine_is_no_interruption() -> None:
    """The replica lives: the cause lies in the batch."""
    scheduler = scheduler_of(4)
    [(jobs, slot)] = dispatched(scheduler)
    scheduler.failed(jobs, slot, 10.0, died=False, computed=True)

    assert len(scheduler.quarantine) == 4


def test_who_died_among_the_pardoned_was_not_alone() -> None:
    """One that is interrupted for the second time, beside others for whom it is the first, is a suspect, no more."""
    scheduler = scheduler_of(3)
    scheduler.former.clear()
    known = job("known")
    known.interrupted = True
    for one in (known, job("a"), job("b")):
        scheduler.former.add(one)
    [(jobs, slot)] = dispatched(scheduler)
    scheduler.failed(jobs, slot, 10.0, died=True, computed=True)

    assert len(scheduler.quarantine) == 1
    assert known.lone_failures == 0


def test_a_job_that_always_kills_is_found_one_death_later_than_in_a_batch() -> None:
    scheduler, deaths, convicted = scheduler_of(1), 0, None
    while convicted is None:
        scheduler.slots.update([f"life {deaths}"])
        [(jobs, slot)] = dispatched(scheduler, 10.0 * (deaths + 1))
        convicted = scheduler.failed(jobs, slot, 10.0 * (deaths + 1), died=True, computed=True)
        deaths += 1

    assert deaths == 3


# -- fairness by what jobs turned out to be ----------------------------------------------------------------------------


def test_a_tenant_whose_jobs_are_longer_than_thought_has_fewer_turns() -> None:
    """By bytes they look alike; one's turn out to be ten times as long, and by work both get as much."""
    former, shares = BatchFormer(FormingPolicy(max_tokens=256)), {"short": 0, "long": 0}
    for n in range(4000):
        former.add(job(n, tokens=10, tenant="short"))
        former.add(job(n, tokens=10, tenant="long"))
    for _ in range(1000):
        [one] = former.form(0.0, max_jobs=1)
        tokens = 100 if one.tenant == "long" else 10
        shares[one.tenant] += tokens
        former.settle(one, tokens)

    assert 0.9 < shares["long"] / shares["short"] < 1.2


def test_a_priority_whose_jobs_are_longer_than_thought_keeps_to_its_share() -> None:
    former, done = BatchFormer(FormingPolicy(max_tokens=2000, patience_s=(0, 0, 0))), [0, 0, 0]
    for n in range(3000):
        for priority in (0, 2):
            former.add(job(n, tokens=10, priority=priority))
    for _ in range(2000):
        [one] = former.form(0.0, max_jobs=1)
        tokens = 100 if one.priority == 0 else 10
        done[one.priority] += tokens
        former.settle(one, tokens)

    assert 8 < done[0] / done[2] < 16, "by their shares it is twelve times"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100_000)), min_size=1, max_size=80))
def test_whatever_jobs_turn_out_to_be_all_get_their_turn(sizes: list[tuple[int, int]]) -> None:
    former = BatchFormer(FormingPolicy(max_tokens=512))
    for n, (tenant, _) in enumerate(sizes):
        former.add(job(n, tokens=50, tenant=f"t{tenant}"))
    seen = []
    while formed := former.form(0.0, max_jobs=2):
        for one in formed:
            seen.append(one.key)
            former.settle(one, sizes[one.key][1])

    assert sorted(seen) == list(range(len(sizes)))


# -- credit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "waiting", "count"), [(32, 0, 48), (4, 0, 20), (0, 0, 16), (0, 9, 0), (4, 8, 12)])
def test_a_free_slot_is_credit_for_one_job(free: int, waiting: int, count: int) -> None:
    """And half a replica's jobs are read ahead, to have some to choose from."""
    policy = CreditPolicy(batch_jobs=16, slot_jobs=1)

    assert (
        entries_to_read(policy, free_slots=free, replicas=1, waiting=waiting, held_bytes=0, mean_bytes=100.0) == count
    )


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_a_flight_tells_who_has_not_ended() -> None:
    jobs = [job(n) for n in range(3)]
    flight = Flight(jobs)
    assert flight.take(JobOutcomes([2, 0], [Fate.ANSWERED, Fate.LATE], [5, 6], True)) == [jobs[2], jobs[0]]
    assert flight.left == [jobs[1]]
    assert flight.computed


@pytest.mark.parametrize("numbers", [[3], [-1], [0, 0], [1]])
def test_outcomes_of_others_jobs_are_refused(numbers: list[int]) -> None:
    flight = Flight([job(n) for n in range(3)])
    flight.take(JobOutcomes([1], [Fate.ANSWERED], [5], True))
    with pytest.raises(DecodeError):
        flight.take(JobOutcomes(numbers, [Fate.ANSWERED] * len(numbers), [0] * len(numbers), True))


def test_outcomes_are_packed_and_read() -> None:
    outcomes = JobOutcomes([2, 0], [Fate.ANSWERED, Fate.DELAYED], [17, 0], True)
    assert JobOutcomes.from_bytes(outcomes.to_bytes()) == outcomes
    empty = JobOutcomes.from_bytes(JobOutcomes([], [], [], False).to_bytes())
    assert not empty.numbers
    assert not empty.computed


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\x94\x90\x90\x90\x00", b"\x94\x91\x00\x90\x90\xc2", b"\x94\x91\xa1a\x91\x00\x91\x00\xc2"]
)
def test_what_are_no_outcomes_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        JobOutcomes.from_bytes(data)
