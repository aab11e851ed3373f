"""The batch former by example: what goes together, in which order, and when."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headrace_cluster.scheduling.batch_former import BatchFormer, FormingPolicy, WaitingJob

NOW = 1000.0
HIGH, NORMAL, LOW = 0, 1, 2


def job(key: Any, **fields: Any) -> WaitingJob:
    """A job of normal priority, submitted now, of ten tokens and a hundred bytes."""
    given = {"tokens": 10, "bytes": 100, "priority": NORMAL, "submitted_s": NOW, **fields}
    return WaitingJob(key=key, **given)


def former_of(*jobs: WaitingJob, **policy: Any) -> BatchFormer:
    """A former that holds these jobs, which came long ago."""
    former = BatchFormer(FormingPolicy(**policy))
    for one in jobs:
        former.add(one)
    return former


def formed(former: BatchFormer, now_s: float = NOW) -> list[Any]:
    return [one.key for one in former.form(now_s)]


def all_formed(former: BatchFormer) -> list[list[Any]]:
    batches = []
    while len(former):
        batches.append(formed(former))
    return batches


# -- what fits ----------------------------------------------------------------------------------------------------


def test_what_waits_goes_together() -> None:
    """One batch for all of it, if it fits."""
    former = former_of(*[job(n) for n in range(5)])

    assert formed(former) == [0, 1, 2, 3, 4]
    assert len(former) == 0


def test_nothing_waits() -> None:
    """Then there is no batch."""
    assert former_of().form(NOW) == []


def test_at_most_so_many_jobs() -> None:
    """The number of jobs is a budget."""
    assert all_formed(former_of(*[job(n) for n in range(5)], max_jobs=2)) == [[0, 1], [2, 3], [4]]


def test_at_most_so_many_tokens() -> None:
    """The work is a budget."""
    assert all_formed(former_of(*[job(n, tokens=40) for n in range(5)], max_tokens=100)) == [[0, 1], [2, 3], [4]]


def test_at_most_so_many_bytes() -> None:
    """The size of the message is a budget."""
    assert all_formed(former_of(*[job(n, bytes=400) for n in range(5)], max_bytes=1000)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("excess", [{"tokens": 5000}, {"bytes": 10 << 20}])
@pytest.mark.parametrize("padded", [False, True])
def test_a_job_larger_than_the_budget_runs_alone(excess: dict[str, int], padded: bool) -> None:
    """It has to run somewhere; it takes nobody along."""
    former = former_of(job("giant", **excess), job("a"), job("b"), padded=padded)

    assert all_formed(former) == [["giant"], ["a", "b"]]


def test_a_gap_is_filled_with_smaller_jobs() -> None:
    """A job that does not fit any more is passed over, and is the first of the next batch."""
    former = former_of(job("a", tokens=60), job("b", tokens=60), job("c", tokens=40), max_tokens=100)

    assert all_formed(former) == [["a", "c"], ["b"]]


# -- urgency ------------------------------------------------------------------------------------------------------


def test_the_longer_a_job_waits_the_earlier_it_is_due() -> None:
    """Within a priority it is first come, first served, however the jobs were read."""
    former = former_of(job("later", submitted_s=NOW), job("earlier", submitted_s=NOW - 1))

    assert formed(former) == ["earlier", "later"]


def test_priorities_differ_in_patience() -> None:
    """High is due at once, normal after a second, low after ten."""
    former = former_of(job("low", priority=LOW), job("normal"), job("high", priority=HIGH))

    assert formed(former) == ["high", "normal", "low"]


def test_an_old_low_job_goes_before_a_new_high_one() -> None:
    """Patience ends: nothing starves."""
    former = former_of(job("high", priority=HIGH), job("low", priority=LOW, submitted_s=NOW - 11))

    assert formed(former) == ["low", "high"]


def test_a_deadline_makes_a_job_due_earlier() -> None:
    """By the time that its answer takes, too."""
    former = former_of(job("patient"), max_jobs=1)
    former.add(job("pressed", deadline_s=NOW + 3), run_s=2.5)

    assert all_formed(former) == [["pressed"], ["patient"]]


def test_a_far_deadline_makes_no_job_less_urgent() -> None:
    """It is the earlier of both that counts."""
    former = former_of(job("far", deadline_s=NOW + 3600, submitted_s=NOW - 1), job("none"))

    assert formed(former) == ["far", "none"]


def test_equals_go_in_the_order_they_came() -> None:
    """Nothing is left to the heap."""
    former = former_of(*[job(n) for n in range(100)], max_jobs=7)

    assert [key for batch in all_formed(former) for key in batch] == list(range(100))


# -- leaving without a batch ------------------------------------------------------------------------------------------


def test_jobs_expire() -> None:
    """At their deadline they are taken out, and are in no batch."""
    former = former_of(job("late", deadline_s=NOW + 1), job("in time", deadline_s=NOW + 5), job("whenever"))

    assert [one.key for one in former.expired(NOW + 1)] == ["late"]
    assert former.expired(NOW + 1) == []
    assert sorted(formed(former)) == ["in time", "whenever"]


def test_a_dispatched_job_does_not_expire_here() -> None:
    """It is no longer this former's to expire."""
    former = former_of(job("gone", deadline_s=NOW + 1))
    former.form(NOW)

    assert former.expired(NOW + 2) == []


def test_a_discarded_job_is_gone() -> None:
    """Once, and from every count."""
    doomed = job("doomed")
    former = former_of(doomed, job("other"))

    assert (former.discard(doomed), former.discard(doomed)) == (True, False)
    assert len(former) == 1
    assert former.bytes == 100
    assert formed(former) == ["other"]


def test_a_job_that_came_back_waits_again_and_keeps_its_place() -> None:
    """What a lost replica had is due when it was due before."""
    back = job("back", submitted_s=NOW - 5, deadline_s=NOW + 60)
    former = former_of(back)
    former.form(NOW)
    former.add(job("new"))
    former.add(back)

    assert formed(former) == ["back", "new"]
    assert former.expired(NOW + 61) == []


def test_counts_by_priority() -> None:
    """Credit is given to each lane for itself."""
    former = former_of(job(1, priority=HIGH), job(2, priority=LOW), job(3, priority=LOW))

    assert [former.waiting_of(priority) for priority in (HIGH, NORMAL, LOW)] == [1, 0, 2]
    former.form(NOW)
    assert [former.waiting_of(priority) for priority in (HIGH, NORMAL, LOW)] == [0, 0, 0]


def test_what_left_is_forgotten() -> None:
    """Jobs with far deadlines that were dispatched, or expired ones that no batch came by, are not kept for ever."""
    former = former_of(max_jobs=1)
    for n in range(5000):
        former.add(job(n, deadline_s=NOW + 3600))
        former.form(NOW)
    for n in range(5000):
        former.add(job(n, deadline_s=NOW + n / 10_000))
        former.expired(NOW + 1)

    assert len(former._by_deadline) < 200
    assert sum(len(flow.by_due) for flow in former._queue._flows.values()) < 200


def test_what_comes_back_again_and_again_is_kept_once() -> None:
    """A job that is dispatched and returned many times leaves one trace, not one for each attempt."""
    former = former_of()
    back = job("back", deadline_s=NOW + 3600)
    for _ in range(5000):
        former.add(back)
        former.form(NOW)
    former.add(back)

    assert len(former._by_deadline) < 200
    assert [one.key for one in former.expired(NOW + 3601)] == ["back"]


# -- when ---------------------------------------------------------------------------------------------------------

READY = -math.inf


def arriving(former: BatchFormer, every_s: float, count: int, start_s: float = NOW) -> float:
    """Jobs come one by one; returns when the last came."""
    for n in range(count):
        former.note_arrivals(1, start_s + n * every_s)
        former.add(job(n))
    return start_s + (count - 1) * every_s


def test_nothing_is_ready_when_nothing_waits() -> None:
    """Neither for an idle replica nor for a busy one."""
    assert former_of().ready_at(NOW, idle=True) is None


@pytest.mark.parametrize("linger_s", [0.0, 0.005, 1.0, 60.0])
def test_a_lone_job_is_ready_at_once(linger_s: float) -> None:
    """However long the policy would wait for company: there is none to come."""
    former = former_of(linger_s=linger_s)
    for n in range(5):
        arriving(former, 1, 1, start_s=NOW + n)
        assert former.ready_at(NOW + n, idle=True) == READY
        assert formed(former, NOW + n) == [0]


def test_a_producer_that_waits_for_each_answer_never_waits_for_company() -> None:
    """Ten milliseconds between its jobs are not dense for a linger of five."""
    former = former_of()
    for n in range(200):
        now_s = NOW + n * 0.01
        arriving(former, 1, 1, start_s=now_s)
        assert former.ready_at(now_s, idle=True) == READY
        former.form(now_s)


def test_dense_arrivals_leave_linger_apart() -> None:
    """While many come, a batch that is not full waits until `linger_s` after the last one."""
    former = former_of(max_jobs=1000, linger_s=0.005)
    last_s = arriving(former, 0.0001, 300)
    former.form(last_s)
    now_s = arriving(former, 0.0001, 5, start_s=last_s + 0.0001)

    assert former.ready_at(now_s, idle=True) == pytest.approx(last_s + 0.005)


def test_arrivals_that_stop_are_not_dense_any_more() -> None:
    """The last jobs of a burst do not wait for others that will not come."""
    former = former_of(max_jobs=1000)
    last_s = arriving(former, 0.0001, 300)

    assert former.ready_at(last_s + 0.5, idle=True) == READY


def test_a_full_batch_does_not_linger() -> None:
    """There is nothing to wait for."""
    former = former_of(max_jobs=100)
    last_s = arriving(former, 0.0001, 100)
    former.form(last_s - 0.0001)
    now_s = arriving(former, 0.00001, 100, start_s=last_s)

    assert former.full
    assert former.ready_at(now_s, idle=True) == READY


@pytest.mark.parametrize("full_by", [{"max_jobs": 3}, {"max_tokens": 30}, {"max_bytes": 300}])
def test_a_busy_replica_is_only_given_full_batches(full_by: dict[str, int]) -> None:
    """What is not full may still grow until the replica is free."""
    former = former_of(job(1), job(2), **full_by)
    assert former.ready_at(NOW, idle=False) is None

    former.add(job(3))
    assert former.ready_at(NOW, idle=False) == READY


# -- padding ------------------------------------------------------------------------------------------------------


def test_with_padding_alike_lengths_go_together() -> None:
    """A long text beside short ones would make all of them long."""
    jobs = [job(f"{length}-{n}", tokens=length) for n in range(4) for length in (10, 200)]
    former = former_of(*jobs, max_jobs=4, padded=True)

    assert [{key.split("-")[0] for key in batch} for batch in all_formed(former)] == [{"10"}, {"200"}]


def test_with_padding_the_budget_is_longest_times_number() -> None:
    """What the engine computes, padding included."""
    former = former_of(job("a", tokens=10), job("b", tokens=30), job("c", tokens=40), max_tokens=60, padded=True)

    assert all_formed(former) == [["a", "b"], ["c"]]


def test_with_padding_the_most_urgent_job_goes_first_whatever_its_length() -> None:
    """Likeness is sought around it."""
    former = former_of(
        job("urgent", tokens=200, priority=HIGH),
        *[job(f"short-{n}", tokens=10) for n in range(8)],
        job("alike", tokens=190, priority=LOW),
        max_jobs=4,
        max_tokens=400,
        padded=True,
    )

    assert formed(former) == ["urgent", "alike"]


def test_with_padding_likeness_is_sought_among_the_urgent_only() -> None:
    """A job far down the queue is not pulled past hundreds of others for its length."""
    crowd = [job(n, tokens=10) for n in range(40)]
    former = former_of(job("first", tokens=200), *crowd, job("twin", tokens=200), max_jobs=4, padded=True)

    assert "twin" not in formed(former)
