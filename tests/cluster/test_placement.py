"""Where a batch goes among several pools: in time at the least cost, else to the first that is done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import AsyncClient, Job
from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.placement import Option, Placement, place
from headrace_cluster.scheduling.routing import PoolFacts
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.slots.ledger import Slot
from support.bad_days import SlowEngine
from support.routing import MODEL, assert_all_accounted_for, jobs, outputs_of
from support.service import PlainService

NOW_S = 100.0


def option(pool: str, run_s: float, *, starts_in_s: float = 0.0, ready: bool = True, **fields: float) -> Option:
    return Option(
        pool,
        starts_s=NOW_S + starts_in_s,
        run_s=run_s,
        ready_s=NOW_S if ready else None,
        **fields,
    )


def placed(*options: Option, batches: float = 1, within_s: float | None = None) -> Placement | None:
    deadline_s = None if within_s is None else NOW_S + within_s
    return place(options, NOW_S, batches=batches, deadline_s=deadline_s)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_a_batch_goes_where_it_costs_least() -> None:
    assert placed(option("cpu", 1.0), option("gpu", 0.1)) == Placement("gpu")
    assert placed(option("cpu", 1.0), option("gpu", 0.1, weight=20)) == Placement("cpu")


def test_what_is_urgent_goes_where_it_is_done_in_time_whatever_that_costs() -> None:
    pools = option("cpu", 1.0), option("gpu", 0.1, weight=20)
    assert placed(*pools, within_s=2) == Placement("cpu")
    assert placed(*pools, within_s=1.1) == Placement("gpu"), "predictions are not that good"
    assert placed(*pools, within_s=0.5) == Placement("gpu")


def test_what_is_late_anyhow_goes_where_it_is_done_first() -> None:
    pools = option("cpu", 1.0), option("gpu", 0.5, starts_in_s=0.6, weight=0.1)
    assert placed(*pools, within_s=0.2) == Placement("cpu")


def test_pools_of_one_price_are_both_used() -> None:
    """A few per cent are not worth standing behind somebody."""
    assert placed(option("a", 1.0, starts_in_s=1.0), option("b", 1.05)) == Placement("b")


def test_without_a_free_slot_it_waits() -> None:
    assert placed(option("cpu", 1.0, ready=False), option("gpu", 0.1, ready=False)) is None


def test_a_slow_pool_stays_empty_while_the_fast_one_is_done_with_all_sooner() -> None:
    cpu, gpu = option("cpu", 10.0), option("gpu", 0.5, starts_in_s=0.3, ready=False)
    assert placed(cpu, gpu) == Placement("gpu", wait=True, until_s=NOW_S + 0.8)
    assert placed(cpu, gpu, batches=19) == Placement("gpu", wait=True, until_s=NOW_S + 0.8)
    assert placed(cpu, gpu, batches=21) == Placement("cpu"), "there is enough for both"
    assert placed(cpu, gpu, batches=math.inf) == Placement("cpu")


def test_nobody_waits_for_a_dearer_pool_if_the_cheap_one_is_in_time() -> None:
    cpu, gpu = option("cpu", 10.0), option("gpu", 0.5, ready=False, weight=100)
    assert placed(cpu, gpu) == Placement("cpu")
    assert placed(cpu, gpu, within_s=5) == Placement("gpu", wait=True, until_s=NOW_S + 0.5)


options = st.builds(
    option,
    st.sampled_from("abc"),
    st.floats(1e-3, 1e3),
    starts_in_s=st.floats(0, 100),
    ready=st.booleans(),
    weight=st.floats(0.01, 100),
)


@given(st.lists(options, min_size=1, max_size=4), st.floats(1, 1e4), st.one_of(st.none(), st.floats(0, 1000)))
def test_it_is_in_time_wherever_that_can_be(some: list[Option], batches: float, within_s: float | None) -> None:
    """And where there is enough to do, nobody is left idle."""
    placement = placed(*some, batches=batches, within_s=within_s)
    open_ = [one for one in some if one.ready_s is not None]
    assert (placement is None) == (not open_)
    assert placed(*some, batches=math.inf, within_s=within_s) in [None, *(Placement(one.pool) for one in open_)]
    deadline_s = None if within_s is None else NOW_S + within_s
    if placement is not None and not placement.wait and any(one.in_time(deadline_s) for one in open_):
        assert any(one.in_time(deadline_s) for one in open_ if one.pool == placement.pool)


# -- in the scheduler --------------------------------------------------------------------------------------------------


def scheduler_of(run_s: Mapping[str, float], **facts: PoolFacts) -> Scheduler:
    """One replica in each pool, whose batches of ten are known to take so long."""
    scheduler = Scheduler(FormingPolicy(max_jobs=10), pools=facts)
    scheduler.slots.update([f"{pool}/0" for pool in run_s])
    for pool, seconds in run_s.items():
        for _ in range(20):
            scheduler.costs.learn(pool, 10, 100, seconds)
    return scheduler


def add(scheduler: Scheduler, count: int, *, deadline_s: float | None = None) -> None:
    for n in range(count):
        scheduler.former.add(WaitingJob(n, 10, 1, 1, 0.0, deadline_s))


def sent(scheduler: Scheduler, now_s: float = NOW_S) -> list[Slot]:
    slots = []
    while (chosen := scheduler.next_batch(now_s)) is not None:
        slots.append(chosen[1])
    return slots


def test_what_one_pool_can_do_alone_the_slow_one_is_spared() -> None:
    scheduler = scheduler_of({"cpu": 10.0, "gpu": 0.1})
    add(scheduler, 15)

    assert [slot.replica for slot in sent(scheduler)] == ["gpu/0"], "the rest waits until it is idle"
    assert scheduler.wait_s(NOW_S) == pytest.approx(0.2, abs=0.05)
    [first] = [batch.slot for batch in scheduler.out]
    scheduler.came_back(first, NOW_S + 0.1)
    assert [slot.replica for slot in sent(scheduler, NOW_S + 0.1)] == ["gpu/0"]


def test_it_waits_for_the_fast_pool_no_longer_than_was_predicted() -> None:
    scheduler = scheduler_of({"cpu": 10.0, "gpu": 0.1})
    add(scheduler, 15)
    assert len(sent(scheduler)) == 1
    wait_s = scheduler.wait_s(NOW_S)
    assert wait_s is not None

    assert [slot.replica for slot in sent(scheduler, NOW_S + wait_s)] == ["cpu/0"]


def test_under_load_all_pools_work() -> None:
    scheduler = scheduler_of({"cpu": 1.0, "gpu": 0.1})
    add(scheduler, 1000)

    assert Counter(slot.replica for slot in sent(scheduler)) == {"gpu/0": 2, "cpu/0": 2}


def test_more_in_redis_than_may_be_held_is_load() -> None:
    scheduler = scheduler_of({"cpu": 10.0, "gpu": 0.1})
    add(scheduler, 30)
    assert {slot.pool for slot in sent(scheduler)} == {"gpu"}
    scheduler.choice.more_waits = True
    assert {slot.pool for slot in sent(scheduler)} == {"cpu"}


def test_a_fast_pool_that_is_gone_or_failing_is_not_waited_for() -> None:
    scheduler = scheduler_of({"cpu": 10.0, "gpu": 0.1})
    add(scheduler, 15)
    [slot] = sent(scheduler)
    scheduler.given_up(slot, NOW_S, died=True)

    assert {slot.pool for slot in sent(scheduler)} == {"cpu"}


def test_pools_may_have_slots_of_their_own_number() -> None:
    scheduler = scheduler_of(
        {"cpu": 1.0, "gpu": 1.0}, cpu=PoolFacts(batches_per_replica=1), gpu=PoolFacts(batches_per_replica=4)
    )
    add(scheduler, 1000)

    assert Counter(slot.pool for slot in sent(scheduler)) == {"cpu": 1, "gpu": 4}
    assert scheduler.slots.free(NOW_S) == 0


def test_a_cheap_pool_does_what_is_not_urgent() -> None:
    scheduler = scheduler_of({"cpu": 1.0, "gpu": 0.1}, gpu=PoolFacts(weight=50))
    add(scheduler, 10)
    assert [slot.pool for slot in sent(scheduler)] == ["cpu"]
    add(scheduler, 10, deadline_s=NOW_S + 0.5)
    assert [slot.pool for slot in sent(scheduler)] == ["gpu"]


def test_jobs_that_end_one_by_one_go_where_they_cost_least() -> None:
    scheduler = Scheduler(FormingPolicy(), jobs_per_replica=4)
    scheduler.slots.update(["cpu/0", "gpu/0"])
    for pool, seconds in (("cpu", 20.0), ("gpu", 1.0)):
        for _ in range(20):
            scheduler.costs.learn(pool, 1, 10, seconds)
    add(scheduler, 6)

    assert Counter(slot.pool for slot in sent(scheduler)) == {"gpu": 1}, "two wait for the first that end there"
    add(scheduler, 200)
    assert {slot.pool for slot in sent(scheduler)} == {"cpu"}


def test_replicas_that_are_slow_get_less() -> None:
    """Among those that are idle the quicker one is first, whatever its name."""
    scheduler = scheduler_of({"cpu": 1.0})
    scheduler.slots.update(["cpu/0", "cpu/1"])
    for _ in range(20):
        scheduler.learn(Slot("cpu/0", idle=True), 10, 100, 2.0)
        scheduler.learn(Slot("cpu/1", idle=True), 10, 100, 1.0)
    add(scheduler, 10)

    assert scheduler.slots.slowness("cpu/0") > 1.2 > 0.9 > scheduler.slots.slowness("cpu/1")
    assert [slot.replica for slot in sent(scheduler)] == ["cpu/1"]


def test_a_pool_of_which_nothing_is_known_gets_one_batch() -> None:
    """However dear or slow it is thought to be: else nobody would ever know."""
    scheduler = scheduler_of({"cpu": 1e-3, "gpu": 1.0}, gpu=PoolFacts(weight=50, prior=(9.0, 0.0, 0.0)))
    scheduler.costs.models.pop("gpu")
    add(scheduler, 10)
    [slot] = sent(scheduler)
    assert slot.pool == "gpu"
    add(scheduler, 5)
    assert [slot.pool for slot in sent(scheduler)] == ["cpu"]


@given(st.lists(st.tuples(st.sampled_from(["add", "send", "back", "die", "late"]), st.integers(0, 5)), max_size=60))
def test_whatever_comes_all_is_sent_in_the_end(steps: list[tuple[str, int]]) -> None:
    """Placing never loses a job, nor a slot, nor does it leave both pools idle with work at hand."""
    scheduler, now_s, ended, added = scheduler_of({"cpu": 5.0, "gpu": 0.1}), NOW_S, 0, 0
    out: list[tuple[list[WaitingJob], Slot]] = []
    for what, number in [*steps, *[("send", 0), ("back", 0)] * 40]:
        now_s += 0.1
        if what == "add":
            added += number
            add(scheduler, number)
        elif what == "send":
            now_s += 5.0
            while (chosen := scheduler.next_batch(now_s)) is not None:
                out.append(chosen)
        elif what == "late":
            scheduler.look_for_stragglers(now_s)
        elif out:
            jobs, slot = out.pop(number % len(out))
            if what == "die":
                scheduler.not_sent(jobs, slot, now_s)
            else:
                scheduler.came_back(slot, now_s)
                ended += len(jobs)
        assert scheduler.slots.in_flight == len(out) == len(scheduler.out)
        assert bool(out) or not len(scheduler.former) or scheduler.wait_s(now_s) is not None or what != "send"

    assert (ended, len(scheduler.former), len(out)) == (added, 0, 0)


# -- and the router ----------------------------------------------------------------------------------------------------


async def test_a_router_learns_which_pool_is_quick(redis_url: str) -> None:
    """Lone jobs go there, once both have been tried; a flood is for both."""
    quick, slow = SlowEngine(0.002), SlowEngine(0.2)
    service = PlainService(redis_url, MODEL, quick, slow)
    replicas = list(service.replicas.values())
    service.pool.replicas = {"a-slow/0": replicas[1], "quick/0": replicas[0]}
    async with service, AsyncClient(redis_url) as client:
        for n in range(20):
            await client.run(Job(model=MODEL, input=n), timeout_s=5)
        assert slow.batches == [1]
        assert await outputs_of(client, jobs(4000)) == list(range(4000))
        assert 1 < len(slow.batches) < len(quick.batches)
        await assert_all_accounted_for(client, 4020)
