"""Nobody crowds out others: shares of priorities, turns of tenants."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_cluster.scheduling.batch_former import BatchFormer, FormingPolicy, WaitingJob

NOW = 1000.0


def former_of(**policy: object) -> BatchFormer:
    return BatchFormer(FormingPolicy(**{"max_jobs": 64, "max_tokens": 4096, **policy}))  # type: ignore[arg-type]


def add(
    former: BatchFormer, count: int, *, tenant: str = "", priority: int = 1, tokens: int = 16, at: float = NOW
) -> None:
    for n in range(count):
        former.add(WaitingJob(n, tokens, 100, priority, at, tenant=tenant))


def keep_full(former: BatchFormer, batches: int) -> Counter[tuple[int, str]]:
    """Tokens that left, by priority and tenant, while every flow gets back what it gave."""
    left: Counter[tuple[int, str]] = Counter()
    for n in range(batches):
        for job in former.form(NOW + n):
            left[job.priority, job.tenant] += job.tokens
            former.add(WaitingJob(job.key, job.tokens, job.bytes, job.priority, NOW + n, tenant=job.tenant))
    return left


# -- tenants ------------------------------------------------------------------------------------------------------


def test_one_job_behind_a_flood_goes_with_the_next_batch() -> None:
    former = former_of()
    add(former, 10_000, tenant="a")
    add(former, 1, tenant="b", at=NOW + 1)

    assert "b" in {job.tenant for job in former.form(NOW + 1)}


def test_tenants_share_by_work_and_not_by_number() -> None:
    """One sends many small jobs, one few large ones: each gets half of the tokens."""
    former = former_of()
    add(former, 1000, tenant="small", tokens=8)
    add(former, 100, tenant="large", tokens=400)

    left = keep_full(former, 200)

    assert left[1, "small"] / left.total() == pytest.approx(0.5, abs=0.03)


@given(st.integers(2, 30))
def test_everybody_has_a_turn(tenants: int) -> None:
    """However many flood, each tenant's work is within a turn of every other's."""
    former = former_of()
    for n in range(tenants):
        add(former, 70, tenant=str(n))

    left = keep_full(former, 60)

    assert len(left) == tenants
    assert max(left.values()) - min(left.values()) <= 2 * 4096 // 8 + 16


def test_a_tenant_s_own_jobs_go_by_dueness() -> None:
    former = former_of(max_jobs=4)
    for at in (5.0, 1.0, 3.0):
        add(former, 1, tenant="a", at=at)
        add(former, 1, tenant="b", at=at)

    order = [(job.tenant, job.submitted_s) for _ in range(2) for job in former.form(NOW)]

    for tenant in "ab":
        assert [at for name, at in order if name == tenant] == [1.0, 3.0, 5.0]


def test_tenants_that_left_are_forgotten() -> None:
    former = former_of()
    for n in range(1000):
        add(former, 1, tenant=str(n))
        former.form(NOW)

    assert len(former._queue._flows) < 10


def test_a_giant_of_one_tenant_does_not_end_the_round() -> None:
    former = former_of()
    add(former, 1, tenant="giant", tokens=1_000_000)
    add(former, 5, tenant="b")

    left = [job.tenant for _ in range(3) for job in former.form(NOW)]

    assert sorted(left) == ["b"] * 5 + ["giant"]


# -- priorities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 1, 2])
def test_each_priority_has_its_share_whatever_is_due_in_the_others(late: int) -> None:
    """Two have been waiting for an hour and are due before anything of the third."""
    former = former_of()
    for priority in range(3):
        add(former, 500, priority=priority, at=NOW if priority == late else NOW - 3600)

    left: Counter[int] = Counter()
    for _ in range(100):
        for job in former.form(NOW):
            left[job.priority] += job.tokens
            at = NOW if job.priority == late else NOW - 3600
            former.add(WaitingJob(job.key, job.tokens, job.bytes, job.priority, at))

    assert left[late] / left.total() >= (12, 3, 1)[late] / 16 - 0.02


def test_an_empty_priority_saves_nothing_up() -> None:
    """Who did not wait has no claim on work that was done meanwhile."""
    former = former_of(max_jobs=8)
    add(former, 10_000, priority=0, at=NOW - 3600)
    for _ in range(500):
        former.form(NOW)
    add(former, 100, priority=2)

    batches = [[job.priority for job in former.form(NOW)] for _ in range(16)]

    assert sum(batch.count(2) for batch in batches) <= 16 * 8 / 16 + 1


def test_a_fresh_urgent_job_is_not_held_up_by_an_old_backlog() -> None:
    former = former_of(max_jobs=8)
    add(former, 1000, priority=2, at=NOW - 3600)
    former.form(NOW)
    add(former, 1, priority=0)

    assert 0 in [job.priority for _ in range(2) for job in former.form(NOW)]
