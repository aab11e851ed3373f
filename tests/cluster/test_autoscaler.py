"""How many replicas the autoscaler asks for: one pool by numbers that can be checked by hand, and bad days."""

from __future__ import annotations

import pytest

from headrace_cluster.autoscaling.arrivals import ArrivalRate
from headrace_cluster.autoscaling.observation import Observation
from headrace_cluster.autoscaling.start_up import StartUpTimes
from support.scaled_pools import CPU, one_pool

# -- one pool ---------------------------------------------------------------------------------------------


def test_a_backlog_is_drained_in_time() -> None:
    """300 jobs of a second each within 30 s; a replica that starts for 5 s does 25 of them, the one there is 30."""
    world = one_pool(drain_s=30)
    assert world.decide(waiting=300) == {CPU: 1 + 11}  # 270 / 25, rounded up
    assert "300 jobs wait" in world.reasons()
    assert "within 30.0 s" in world.reasons()


def test_steady_arrivals_get_what_they_need_and_some_room() -> None:
    """Nine jobs a second of a second each fill ten replicas to nine tenths."""
    world = one_pool(drain_s=30, utilisation=0.9)
    for _ in range(30):
        world.decide(arrivals_per_s=9.0)
    assert world.targets[CPU] in (10, 11)


def test_of_arrivals_and_backlog_the_greater_counts() -> None:
    """In whichever order jobs are done, those that come while 200 are drained have as long as these had."""
    arrivals, both = one_pool(drain_s=30), one_pool(drain_s=30)
    for _ in range(30):
        arrivals.decide(arrivals_per_s=10.0)
        both.decide(arrivals_per_s=10.0, waiting=200)
    assert arrivals.targets == both.targets == {CPU: 10}


def test_no_replica_is_started_for_what_is_chance() -> None:
    """Ten replicas do ten jobs a second. One more each second can wait; many that wait cannot, nor can twenty."""
    world = one_pool(drain_s=30)
    world.targets[CPU] = world.running[CPU] = 10
    assert world.decide(arrivals_per_s=11.0, delivered=10)[CPU] == 10
    assert world.decide(arrivals_per_s=11.0, delivered=10, waiting=140)[CPU] > 10
    world.targets[CPU] = world.running[CPU] = 10
    assert world.decide(arrivals_per_s=30.0, delivered=10)[CPU] == 30


def test_what_is_being_run_is_work_too() -> None:
    """Serve's own policy for queues sees 0 here, and takes the replicas away."""
    world = one_pool(drain_s=30)
    assert world.decide(delivered=300)[CPU] == 12


def test_a_deadline_asks_for_more() -> None:
    """Jobs that are submitted ten seconds before their deadline have eight."""
    assert one_pool(drain_s=30).decide(waiting=80, slack_s=10)[CPU] > one_pool(drain_s=30).decide(waiting=80)[CPU]


def test_what_has_waited_longer_is_more_urgent() -> None:
    assert one_pool(drain_s=30).decide(waiting=80, oldest_s=15)[CPU] > one_pool(drain_s=30).decide(waiting=80)[CPU]


def test_replicas_that_start_are_counted_on() -> None:
    """While they are starting, nothing more is asked for."""
    world = one_pool(drain_s=30)
    asked = world.decide(waiting=300, starting=True)[CPU]
    for second in range(1, 5):
        assert world.decide(waiting=300 - second, oldest_s=second, starting=True)[CPU] == asked


def test_jobs_that_generate_share_a_replica() -> None:
    """Sixteen slots do sixteen jobs at a time."""
    many = one_pool(drain_s=30, slots=16).decide(waiting=1600)[CPU]
    assert many == one_pool(drain_s=30).decide(waiting=100)[CPU]


def test_bounds_are_kept_and_told() -> None:
    world = one_pool(2, 4)
    assert world.decide(waiting=100_000)[CPU] == 4
    assert "too few" in world.reasons()
    for _ in range(60):
        world.decide()
    assert world.targets[CPU] == 2


# -- fewer ------------------------------------------------------------------------------------------------


def test_fewer_only_after_a_cool_down() -> None:
    world = one_pool(drain_s=30)
    world.decide(waiting=300)
    for _ in range(19):
        assert world.decide(delivered=1)[CPU] == 12
    while world.decide(delivered=1)[CPU] == 12:
        assert world.now_s < 1030
    assert world.targets[CPU] == 1
    assert "no more than 1 replica was needed for 20 s" in world.reasons()


def test_every_peak_has_its_own_cool_down() -> None:
    """Not only the first."""
    world = one_pool(drain_s=30)
    for _ in range(60):
        world.decide(delivered=1)
    peak = world.decide(waiting=300)[CPU]
    for _ in range(19):
        assert world.decide(delivered=1)[CPU] == peak


def test_none_only_when_idle() -> None:
    """A pool that may stop keeps one replica until nothing has come for long enough."""
    world = one_pool(0, idle_s=100)
    world.decide(waiting=300)
    for _ in range(99):
        assert world.decide()[CPU] >= 1
    for _ in range(3):
        world.decide()
    assert world.targets[CPU] == 0


def test_a_job_that_came_and_went_keeps_it_awake() -> None:
    """It was answered between two looks, and only the count of all tells of it."""
    world = one_pool(0, idle_s=50)
    world.decide(waiting=1, submitted=1)
    for second in range(100):
        assert world.decide(submitted=2 + second // 10)[CPU] == 1


def test_a_job_starts_a_pool_that_stopped() -> None:
    world = one_pool(0)
    assert world.decide(submitted=0)[CPU] == 0
    assert world.decide(waiting=1, submitted=1)[CPU] == 1


def test_a_rate_that_fades_away_starts_nothing() -> None:
    world = one_pool(0, idle_s=10)
    assert world.decide(arrivals_per_s=1e-3)[CPU] == 0


def test_a_restarted_controller_first_looks_on() -> None:
    """It knows nothing of the last cool-down, so it lets one pass."""
    world = one_pool(1)
    world.targets[CPU] = world.running[CPU] = 12
    assert world.decide(delivered=1)[CPU] == 12
    assert "only after a cool-down" in world.reasons()


def test_work_that_is_being_run_keeps_its_replicas() -> None:
    """Each holds two batches of 64, so 1,000 jobs in routers' hands keep eight of ten, fast as they are."""
    world = one_pool(1, job_s=1e-6, max_jobs=64)
    world.targets[CPU] = world.running[CPU] = 10
    for _ in range(60):
        world.decide(delivered=1000)
    assert world.targets[CPU] == 8


# -- bad days ---------------------------------------------------------------------------------------------


def test_what_is_old_is_not_acted_on() -> None:
    """A Redis that is away must not look like a backlog of nothing."""
    world = one_pool(0)
    world.targets[CPU] = world.running[CPU] = 7
    seen = world.look()
    (made,) = world.autoscaler.decide(world.now_s + 6, seen)
    assert (made.replicas, made.holding) == (7, True)
    assert "6 s old" in made.reasons[0]
    assert made.cause == "stale"


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_jumps_changes_nothing(jump_s: float) -> None:
    """Cool-downs begin anew after it."""
    world = one_pool(1)
    world.decide(waiting=300)
    before = world.targets[CPU]
    assert world.decide(jump_s, delivered=1)[CPU] == before
    assert f"jumped by {jump_s:+.0f} s" in world.reasons()
    for _ in range(10):
        assert world.decide(delivered=1)[CPU] == before


def test_a_model_that_nobody_looked_at_yet_is_left_alone() -> None:
    world = one_pool(1)
    (made,) = world.autoscaler.decide(world.now_s, Observation(world.now_s, {}, world.look().pools))
    assert made.replicas == 1


# -- what is measured -------------------------------------------------------------------------------------


def test_a_rate_is_right_from_the_first_second_and_follows() -> None:
    rate, count = ArrivalRate(), 0
    rate.note(0.0, 0)
    for second in range(1, 100):
        count += 50
        assert rate.note(second, count) == pytest.approx(50)
    for second in range(100, 200):
        rate.note(second, count)
    assert rate.per_s < 0.1


def test_a_counter_that_begins_anew_is_no_burst() -> None:
    rate = ArrivalRate()
    rate.note(0.0, 1_000_000)
    assert rate.note(1.0, 10) == 0.0
    assert rate.note(2.0, 20) == pytest.approx(10)


def test_start_up_is_the_median_of_the_last() -> None:
    times = StartUpTimes(10.0)
    times.note(0.0, 0, 0)
    assert (times.start_up_s, times.measured) == (10.0, 0)
    now_s = 0.0
    for took_s in (3.0, 4.0, 100.0):
        times.note(now_s, 0, 1)
        times.note(now_s + took_s, 1, 1)
        now_s += 200.0
        times.note(now_s, 0, 0)
    assert (times.start_up_s, times.measured) == (4.0, 3)


def test_a_start_that_was_called_off_is_not_timed() -> None:
    times = StartUpTimes(10.0)
    times.note(0.0, 1, 1)
    times.note(1.0, 1, 3)
    times.note(2.0, 1, 1)
    times.note(50.0, 2, 2)
    assert times.start_up_s < 49 or times.measured == 0
    times.note(51.0, 1, 2)  # one dies, and Serve starts another
    times.note(52.0, 2, 2)
    assert times.measured <= 1
