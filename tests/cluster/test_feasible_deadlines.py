"""Under overload, what cannot be in time any more makes room for what can: else soon everything is late."""

from __future__ import annotations

import pytest

from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.simulation import simulate
from headrace_cluster.simulation.trace import parse_trace

RUN_S = 2.0


def job(name: str, deadline_s: float | None) -> WaitingJob:
    return WaitingJob(key=name, tokens=10, bytes=10, priority=1, submitted_s=0.0, deadline_s=deadline_s)


def overloaded(*, batches: int = 10, one_by_one: bool = False) -> Scheduler:
    """One replica whose batches of a job have taken two seconds each, and more waits than a router may hold."""
    scheduler = Scheduler(FormingPolicy(max_jobs=1), jobs_per_replica=2 if one_by_one else 0)
    scheduler.slots.update(["/a"])
    for number in range(batches):
        scheduler.former.add(job(f"before {number}", None))
        chosen = scheduler.next_batch(0.0)
        assert chosen is not None
        scheduler.came_back(chosen[1], 0.0)
        scheduler.learn(chosen[1], 1, 10, RUN_S)
    scheduler.choice.more_waits = True
    return scheduler


def names(jobs: list[WaitingJob]) -> list[str]:
    return [each.key for each in jobs]


def test_what_an_idle_replica_cannot_do_in_time_is_given_up() -> None:
    """A batch takes two seconds, and half a second more for whatever is unforeseen."""
    scheduler = overloaded()
    for deadline_s in (0.5, 2.0, 2.4, 2.6, 9.0):
        scheduler.former.add(job(f"due in {deadline_s}", deadline_s))
    scheduler.former.add(job("whenever", None))
    assert names(scheduler.expired(0.0)) == ["due in 0.5", "due in 2.0", "due in 2.4"]
    assert len(scheduler.former) == 3


def test_behind_a_batch_it_takes_that_much_longer() -> None:
    scheduler = overloaded()
    scheduler.former.add(job("runs", None))
    assert scheduler.next_batch(0.0) is not None
    for deadline_s in (4.0, 5.0):
        scheduler.former.add(job(f"due in {deadline_s}", deadline_s))
    assert names(scheduler.expired(0.0)) == ["due in 4.0"]
    assert names(scheduler.expired(1.0)) == []
    assert names(scheduler.expired(3.0)) == ["due in 5.0"], "the batch before it did not come back"


def test_without_overload_every_job_has_its_chance() -> None:
    """Nobody else would have its place, and predictions may be wrong."""
    scheduler = overloaded()
    scheduler.choice.more_waits = False
    scheduler.former.add(job("due soon", 0.5))
    assert scheduler.expired(0.0) == []
    assert names(scheduler.expired(0.5)) == ["due soon"]


@pytest.mark.parametrize("few", [{"batches": 3}, {"one_by_one": True}], ids=["nothing measured", "one by one"])
def test_where_predictions_say_little_only_the_clock_counts(few: dict[str, int]) -> None:
    """Three batches are no measurement, and a job that generates ends when it ends."""
    scheduler = overloaded(**few)  # type: ignore[arg-type]
    scheduler.former.add(job("due soon", 0.5))
    assert scheduler.expired(0.0) == []


def test_a_model_without_replicas_gives_nothing_up() -> None:
    scheduler = overloaded()
    scheduler.slots.update([])
    scheduler.former.add(job("due soon", 0.5))
    assert scheduler.expired(0.0) == []


def test_an_overload_does_not_make_everything_late() -> None:
    """Three times as much comes as one replica can do. A third is in time: it would be nearly nothing."""
    trace = parse_trace(
        {
            "duration_s": 600,
            "arrivals": {"jobs_per_s": 30},
            "deadlines": {"least_s": 20, "most_s": 20},
            "work": {"batch_s": 0.0, "job_s": 0.1, "token_s": 0.0},
            "batching": {"max_jobs": 16},
        }
    )
    ours = simulate(trace, policies=POLICIES[:1], processes=1).ours
    assert ours.deadline_attainment == pytest.approx(1 / 3, rel=0.1)
    assert ours.answered == pytest.approx(6000, rel=0.1)
