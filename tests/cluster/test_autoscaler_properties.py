"""What holds of the autoscaler's decisions whatever the load: bounds, more for more, no flapping, none only if idle."""

from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace_cluster.autoscaling.autoscaler import Autoscaler
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.scheduling.cost_model import CostModel

POOLS = ("m@cpu", "m@gpu")

loads = st.builds(
    ModelLoad,
    waiting=st.integers(0, 100_000),
    delivered=st.integers(0, 5_000),
    arrivals_per_s=st.floats(0, 1e4),
    mean_tokens=st.floats(1, 4096),
    slack_s=st.none() | st.floats(0, 1e4),
    oldest_s=st.floats(0, 1e4),
)
costs = st.floats(1e-5, 10.0)


@st.composite
def pools(draw: st.DrawFn, name: str) -> PoolPlan:
    least = draw(st.integers(0, 5))
    return PoolPlan(name, least, max(1, least + draw(st.integers(0, 20))), cost=draw(st.floats(0.01, 100)))


def state(
    replicas: int, target: int, job_s: float, start_up_s: float = 5.0, models: tuple[str, ...] = ("m",)
) -> PoolState:
    return PoolState(replicas, target, start_up_s, dict.fromkeys(models, CostModel((0.0, job_s, 0.0))))


def one(least: int = 0, most: int = 1000, **model: float) -> Autoscaler:
    return Autoscaler(
        ScalingPlan((ModelPlan("m", ("m@cpu",), **model),), (PoolPlan("m@cpu", least, most, cool_down_s=20),))  # type: ignore[arg-type]
    )


@settings(max_examples=30)
@given(
    pool_plans=st.tuples(*(pools(name) for name in POOLS)),
    rounds=st.lists(
        st.tuples(st.floats(0, 90), loads, st.lists(st.integers(0, 30), min_size=2, max_size=2)), max_size=12
    ),
    job_s=st.tuples(costs, costs),
    stuck=st.booleans(),
)
def test_never_outside_bounds(
    pool_plans: tuple[PoolPlan, ...],
    rounds: list[tuple[float, ModelLoad, list[int]]],
    job_s: tuple[float, ...],
    stuck: bool,
) -> None:
    """Whatever the load is, whatever really runs, and however time goes."""
    autoscaler = Autoscaler(ScalingPlan((ModelPlan("m", POOLS),), pool_plans))
    targets = {pool.name: pool.min_replicas for pool in pool_plans}
    now_s = 0.0
    for passed_s, load, running in rounds:
        now_s += passed_s
        states = {
            pool.name: PoolState(
                n, targets[pool.name], 5.0, {"m": CostModel((0.0, each_s, 0.0))}, "no" * (stuck and n > 5)
            )
            for pool, n, each_s in zip(pool_plans, running, job_s, strict=True)
        }
        decisions = autoscaler.decide(now_s, Observation(now_s, {"m": load}, states))
        assert {made.pool for made in decisions} == {pool.name for pool in pool_plans if not pool.fixed}
        for made in decisions:
            pool = next(pool for pool in pool_plans if pool.name == made.pool)
            assert pool.min_replicas <= made.replicas <= pool.max_replicas
            targets[made.pool] = made.replicas


@given(load=loads, more=st.integers(1, 100_000), target=st.integers(0, 50), job_s=costs)
def test_more_work_never_gets_fewer_replicas(load: ModelLoad, more: int, target: int, job_s: float) -> None:
    def decided(waiting: int) -> int:
        busier = ModelLoad(waiting, load.delivered, load.arrivals_per_s, load.mean_tokens, load.slack_s, load.oldest_s)
        seen = Observation(0.0, {"m": busier}, {"m@cpu": state(target, target, job_s)})
        (made,) = one().decide(0.0, seen)
        return made.replicas

    assert decided(load.waiting + more) >= decided(load.waiting)


@settings(max_examples=15)
@given(
    per_s=st.floats(1, 300),
    noise=st.lists(st.floats(-0.04, 0.04), min_size=100, max_size=100),
)
@example(per_s=20.0, noise=[0.0] * 100)  # one replica is patient at first: what comes waits no more than half the time
def test_constant_load_with_noise_does_not_flap(per_s: float, noise: list[float]) -> None:
    """Once it has settled, it may rise to the most that the noise asks for, and falls no more."""
    autoscaler, target, seen_targets, waiting = one(1), 1, list[int](), 0.0
    for second, off in enumerate([0.0] * 60 + noise):
        arriving = per_s * (1 + off)
        waiting = max(0.0, waiting + arriving - target / 0.1)
        load = ModelLoad(int(waiting), delivered=1, arrivals_per_s=arriving)
        seen = Observation(second, {"m": load}, {"m@cpu": state(target, target, 0.1)})
        (made,) = autoscaler.decide(second, seen)
        target = made.replicas
        seen_targets.append(target)
    settled = seen_targets[60:]
    assert settled == sorted(settled)
    assert target >= math.floor(0.1 * per_s)


@settings(max_examples=30)
@given(
    bursts=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 200)), min_size=1, max_size=6),
    idle_s=st.integers(1, 120),
)
def test_to_zero_only_when_nothing_came_for_idle_s(bursts: list[tuple[int, int]], idle_s: int) -> None:
    autoscaler, target, now, last, submitted = one(0, idle_s=idle_s), 0, 0, 0, 0
    for pause, jobs in bursts:
        for second in range(pause + 1):
            now += 1
            waiting = jobs if second == 0 else 0
            submitted += waiting
            last = now if waiting else last
            load = ModelLoad(waiting, submitted=submitted)
            seen = Observation(now, {"m": load}, {"m@cpu": state(target, target, 0.1)})
            (made,) = autoscaler.decide(now, seen)
            assert made.replicas or not target or now - last >= idle_s
            assert made.replicas or not waiting
            target = made.replicas


@settings(max_examples=30)
@given(delivered=st.integers(0, 20_000), running=st.integers(1, 50), job_s=costs)
def test_never_below_what_is_being_run(delivered: int, running: int, job_s: float) -> None:
    """A replica holds two batches of 64 jobs."""
    autoscaler, target = one(0, idle_s=1), running
    for second in range(60):
        load = ModelLoad(delivered=delivered)
        seen = Observation(second, {"m": load}, {"m@cpu": state(target, target, job_s)})
        (made,) = autoscaler.decide(second, seen)
        target = made.replicas
        assert target >= min(running, math.ceil(delivered / 128))


@given(loads=st.lists(loads, min_size=3, max_size=3), job_s=costs)
def test_a_shared_pool_gets_what_its_models_need_together(loads: list[ModelLoad], job_s: float) -> None:
    """As much as all of them alone, less what rounding up gave each."""
    names = ("a", "b", "c")

    def decided(some: dict[str, ModelLoad]) -> int:
        models = tuple(ModelPlan(name, ("@all",)) for name in some)
        autoscaler = Autoscaler(ScalingPlan(models, (PoolPlan("@all", 0, 1 << 40),)))
        (made,) = autoscaler.decide(0.0, Observation(0.0, some, {"@all": state(0, 0, job_s, models=names)}))
        return made.replicas

    alone = sum(decided({name: load}) for name, load in zip(names, loads, strict=True))
    assert alone - len(names) <= decided(dict(zip(names, loads, strict=True))) <= alone
