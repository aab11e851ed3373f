"""How many replicas of each of several pools the autoscaler asks for: cores, and GPUs that are fast and dear."""

from __future__ import annotations

import pytest

from headrace_cluster.autoscaling.autoscaler import Autoscaler
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from support.scaled_pools import CPU, GPU, World, costing, plan, two_pools


def test_the_cheapest_capacity_is_filled_first() -> None:
    """A job costs 1 on a core, and 10 · 0.05 = 0.5 on a GPU."""
    assert two_pools({CPU: 1.0, GPU: 0.05}, 10).decide(waiting=5000) == {CPU: 0, GPU: 10}


def test_what_does_not_fit_goes_to_the_next() -> None:
    """Ten GPUs do not do it; the cores help."""
    assert two_pools({CPU: 1.0, GPU: 0.05}, 10).decide(waiting=5200) == {CPU: 8, GPU: 10}


def test_no_gpu_is_started_for_what_a_core_can_do() -> None:
    """A job is cheaper there, but a whole GPU is not."""
    assert two_pools({CPU: 1.0, GPU: 0.05}, 10).decide(waiting=5) == {CPU: 1, GPU: 0}


def test_only_who_answers_in_time_counts() -> None:
    """A job takes ten seconds on a core, and has five."""
    world = two_pools({CPU: 10.0, GPU: 0.05}, 1000)
    world.start_up_s = 1.0
    assert world.decide(waiting=1, slack_s=5.0) == {CPU: 0, GPU: 1}


def test_a_pool_without_nodes_is_told_and_others_do_its_work() -> None:
    """What the pool would do is asked for all the same: a node may come."""
    world = two_pools({CPU: 1.0, GPU: 0.05}, 10)
    world.unplaceable[GPU] = "it asks for 1 GPU, and there is none"
    assert world.decide(waiting=400) == {CPU: 10, GPU: 1}
    assert "no node can hold a replica: it asks for 1 GPU" in world.reasons(GPU)


def test_replicas_that_never_come_are_not_waited_for() -> None:
    world = two_pools({CPU: 1.0, GPU: 0.05}, 10)
    world.decide(waiting=400, starting=True)
    assert world.targets == {CPU: 0, GPU: 1}
    for _ in range(65):
        world.decide(waiting=400, starting=True)
    assert world.targets[CPU] == 10
    assert "do not become ready" in world.reasons(GPU)


def test_a_pool_of_fixed_size_does_its_part() -> None:
    """Nothing is decided for it."""
    pools = (PoolPlan(CPU, 5, 5), PoolPlan(GPU, 0, 10, cost=10))
    world = World(plan(*pools), {CPU: 1.0, GPU: 0.05})
    world.decide(waiting=100)
    assert world.targets == {CPU: 5, GPU: 0}
    assert set(world.decisions) == {GPU}


def test_the_last_awake_pool_stays_until_the_other_runs() -> None:
    world = two_pools({CPU: 1.0, GPU: 0.05}, 10, idle_s=1000)
    world.decide(waiting=1)
    assert world.targets == {CPU: 1, GPU: 0}
    for _ in range(100):
        world.decide(waiting=5000, starting=True)
    assert world.targets[CPU] >= 1


def test_models_of_a_shared_pool_are_summed() -> None:
    """Three quarters of a replica and three quarters make two."""
    models = tuple(ModelPlan(name, ("@all",), drain_s=30) for name in ("a", "b"))
    autoscaler = Autoscaler(ScalingPlan(models, (PoolPlan("@all", 0, 10),)))
    costs = {"a": costing(1.0), "b": costing(1.0)}
    load = ModelLoad(waiting=20)
    seen = Observation(0.0, {"a": load, "b": load}, {"@all": PoolState(1, 1, 1.0, costs)})
    (made,) = autoscaler.decide(0.0, seen)
    assert made.replicas == 2
    assert "a: 20 jobs wait" in "; ".join(made.reasons)
    assert "b: 20 jobs wait" in "; ".join(made.reasons)


def test_a_plan_with_a_pool_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no such pool: \\['m@gpu'\\]"):
        ScalingPlan((ModelPlan("m", (GPU,)),), (PoolPlan(CPU, 0, 1),))


# -- what takes a while to start ------------------------------------------------------------------------------


def slow_gpus() -> World:
    """A job takes 0.7 s on a core and a tenth of it on a GPU, which costs six cores and takes a minute to start."""
    pools = (PoolPlan(CPU, 1, 16, cost=1.0), PoolPlan(GPU, 0, 8, cost=6.0))
    world = World(plan(*pools), {CPU: 0.7, GPU: 0.07}, start_up_s=8.0)
    world.start_ups_s[GPU] = 60.0
    return world


def test_cores_do_what_cannot_wait_for_gpus() -> None:
    """GPUs were asked for when the burst began; for a minute they do nothing, and three cores are too few."""
    world = slow_gpus()
    world.targets, world.running = {CPU: 3, GPU: 0}, {CPU: 3, GPU: 0}
    world.decide(arrivals_per_s=36.0, delivered=60, waiting=30, starting=True)
    assert world.targets[GPU] >= 2
    assert world.decide(10.0, arrivals_per_s=36.0, delivered=60, waiting=340, oldest_s=10, starting=True)[CPU] >= 10


def test_a_start_that_takes_longer_than_usual_is_believed() -> None:
    """It was thought to take ten seconds: after forty, the cores are asked to do the work."""
    world = slow_gpus()
    world.start_ups_s[GPU] = 10.0
    world.targets, world.running = {CPU: 3, GPU: 2}, {CPU: 3, GPU: 0}
    load = {"arrivals_per_s": 30.0, "delivered": 60}
    asked = [world.decide(1.0, **load, waiting=20 * second, starting=True)[CPU] for second in range(1, 41)]
    assert asked[8] < 6
    assert asked[-1] >= 12


def test_nothing_is_started_that_comes_when_the_work_is_done() -> None:
    """Sixteen cores do 1,300 jobs in 57 s, long after they should; a GPU would be there after 60."""
    world = slow_gpus()
    world.targets, world.running = {CPU: 16, GPU: 0}, {CPU: 16, GPU: 0}
    assert world.decide(waiting=1300, arrivals_per_s=4.0) == {CPU: 16, GPU: 0}
    assert "too few" in world.reasons()
    assert world.decide(waiting=13_000, arrivals_per_s=4.0)[GPU] > 0


def test_cores_take_the_place_of_a_gpu_that_is_too_dear_for_what_is_left() -> None:
    """Three jobs a second: half of a GPU for 6, or three cores. What is on its way there does not keep the GPU."""
    world = slow_gpus()
    world.targets, world.running = {CPU: 1, GPU: 1}, {CPU: 1, GPU: 1}
    for _ in range(90):
        world.decide(arrivals_per_s=3.3, delivered=2)
    assert world.targets == {CPU: 3, GPU: 0}


def test_a_gpu_that_is_nearly_as_cheap_stays() -> None:
    """Seven jobs a second: a GPU for 6 or five cores, the next moment six. To and fro would cost a start each time."""
    world = slow_gpus()
    world.targets, world.running = {CPU: 1, GPU: 1}, {CPU: 1, GPU: 1}
    for _ in range(90):
        world.decide(arrivals_per_s=7.0, delivered=2)
    assert world.targets == {CPU: 1, GPU: 1}
