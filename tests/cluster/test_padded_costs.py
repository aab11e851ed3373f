"""Where shorter jobs are padded, a batch is as large as its padding makes it; jobs are no dearer for it."""

from __future__ import annotations

import pytest

from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.scheduler import Scheduler

TOKEN_S = 0.001


def job(tokens: int) -> WaitingJob:
    return WaitingJob(key=tokens, tokens=tokens, bytes=1, priority=1, submitted_s=0.0)


def after_odd_batches(*, padded: bool) -> Scheduler:
    """Batches of a long job and seven short ones, each computed as long as the longest."""
    scheduler = Scheduler(FormingPolicy(max_jobs=8, padded=padded))
    scheduler.slots.update(["/a"])
    for _ in range(40):
        for tokens in (100, *[10] * 7):
            scheduler.former.add(job(tokens))
        chosen = scheduler.next_batch(0.0)
        assert chosen is not None
        jobs, slot = chosen
        longest = max(each.tokens for each in jobs)
        scheduler.came_back(slot, 0.0)
        run_s = len(jobs) * longest * TOKEN_S
        scheduler.learn(slot, len(jobs), sum(each.tokens for each in jobs), run_s, longest=longest)
    return scheduler


def test_alike_jobs_are_not_thought_as_dear_as_what_was_padded() -> None:
    """Eight of 100 take 0.8 s, and a fourth more is allowed for the padding that remains."""
    scheduler = after_odd_batches(padded=True)
    assert scheduler.costs.of("").predict_s(8, 800) == pytest.approx(1.25 * 0.8, rel=0.05)
    assert scheduler.costs.mean_tokens == pytest.approx(170 / 8), "what jobs are like is another matter"


def test_without_padding_tokens_are_tokens() -> None:
    scheduler = after_odd_batches(padded=False)
    assert scheduler.costs.of("").predict_s(8, 170) == pytest.approx(0.8, rel=0.05)


def test_a_batch_with_much_padding_is_not_late() -> None:
    """It is given the time that its longest job makes it take."""
    scheduler = after_odd_batches(padded=True)
    for tokens in (200, 10, 10, 10):
        scheduler.former.add(job(tokens))
    chosen = scheduler.next_batch(0.0)
    assert chosen is not None
    assert chosen[1].replica == "/a"
    [batch] = scheduler.out
    assert len(chosen[0]) == 4
    assert batch.run_s == pytest.approx(4 * 200 * TOKEN_S, rel=0.2)
