"""Who says how many replicas there are, in the simulator: headrace's autoscaler, Serve's own, or a number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headrace_cluster.autoscaling.arrivals import ArrivalRate
from headrace_cluster.autoscaling.autoscaler import Autoscaler
from headrace_cluster.autoscaling.observation import MEAN_TOKENS, ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.start_up import StartUpTimes
from headrace_cluster.config.models import ScalingConfig
from headrace_cluster.scheduling.pool_costs import PoolCosts
from headrace_cluster.simulation.pools import SimulatedPool
from headrace_cluster.simulation.trace import ServeBaseline

__all__ = ["FixedScaling", "HeadraceScaling", "Load", "Scaling", "ServeScaling"]


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to be known of a model at one moment."""

    waiting: int
    in_flight: int
    submitted: int
    oldest_s: float
    """How long ago the oldest job that waits was submitted."""


class Scaling(Protocol):
    """Decides the number of replicas."""

    @property
    def every_s(self) -> float:
        """How often it is asked; infinite: never."""

    def decide(self, now_s: float, load: Load) -> Mapping[str, tuple[int, str]]:
        """For each pool whose number is to change: how many, and why."""


class FixedScaling:
    """As many as there were from the beginning."""

    every_s: Final = math.inf

    def decide(self, now_s: float, load: Load) -> Mapping[str, tuple[int, str]]:
        """Nothing ever changes."""
        return {}


class ServeScaling:
    """Serve's default policy, `replica_queue_length_autoscaling_policy`, with Serve's delays and look-back window.

    A test holds it against Ray's own functions. Its one pool is the only one: a plain deployment is of one kind.

    Args:
        pool: whose replicas.
        settings: Serve's.
        target: ongoing requests of one replica.
    """

    every_s: Final = 1.0

    def __init__(self, pool: SimulatedPool, settings: ServeBaseline, *, target: float) -> None:
        self._pool = pool
        self._settings = settings
        self._target = target
        self._seen: deque[tuple[float, int]] = deque()
        self._direction = 0
        self._since_s = 0.0

    def decide(self, now_s: float, load: Load) -> Mapping[str, tuple[int, str]]:
        """By the mean of what was queued and running within the window."""
        wanted = self._wanted(self._mean(now_s, load.waiting + load.in_flight))
        target = self._pool.target
        chosen = self._after_delay(now_s, wanted, target)
        if chosen == target:
            return {}
        return {self._pool.name: (chosen, f"{load.waiting + load.in_flight} requests, {self._target:g} a replica")}

    def _mean(self, now_s: float, ongoing: int) -> float:
        self._seen.append((now_s, ongoing))
        while self._seen[0][0] < now_s - self._settings.look_back_period_s:
            self._seen.popleft()
        return sum(count for _, count in self._seen) / len(self._seen)

    def _wanted(self, ongoing: float) -> int:
        running = len(self._pool.running)
        if not running:  # the cold start: one, however many wait
            wanted = max(1, self._pool.target) if ongoing else self._pool.target
        else:
            wanted = math.ceil(ongoing / self._target)
        return max(self._pool.spec.min_replicas, min(wanted, self._pool.spec.max_replicas))

    def _after_delay(self, now_s: float, wanted: int, target: int) -> int:
        """More only after wanting more for the whole delay, fewer after wanting fewer; the last one goes alone."""
        direction = (wanted > target) - (wanted < target)
        if direction > 0 and not self._pool.running:  # the cold start waits for nothing, and is no part of a delay
            self._direction = 0
            return wanted
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        if not direction:
            return target
        delay_s = self._settings.upscale_delay_s if direction > 0 else self._settings.downscale_delay_s
        if now_s - self._since_s < delay_s:
            return target
        self._direction = 0
        return wanted if direction > 0 or target == 1 else max(1, wanted)


class HeadraceScaling:
    """The autoscaler of production, told what the observer would have read in Redis.

    Args:
        model: what is scaled, as the autoscaler knows it.
        pools: its pools.
        scaling: towards what.
        costs: what routing learns of the pools, and of the jobs.
    """

    every_s: Final = 0.5

    def __init__(
        self, model: ModelPlan, pools: Sequence[SimulatedPool], scaling: ScalingConfig, costs: PoolCosts
    ) -> None:
        plans = tuple(
            PoolPlan(
                pool.name,
                pool.spec.min_replicas,
                pool.spec.max_replicas,
                cost=pool.spec.cost,
                cool_down_s=scaling.cool_down_s,
            )
            for pool in pools
        )
        self._autoscaler = Autoscaler(ScalingPlan((model,), plans))
        self._model = model.name
        self._pools = pools
        self._costs = costs
        self._rate = ArrivalRate()
        self._start_ups = {plan.name: StartUpTimes(plan.start_up_s) for plan in plans}

    def decide(self, now_s: float, load: Load) -> Mapping[str, tuple[int, str]]:
        """As Serve's controller asks."""
        seen = Observation(now_s, {self._model: self._load(now_s, load)}, dict(map(self._state, self._watched(now_s))))
        decisions = self._autoscaler.decide(now_s, seen)
        targets = {pool.name: pool.target for pool in self._pools}
        return {d.pool: (d.replicas, "; ".join(d.reasons)) for d in decisions if d.replicas != targets[d.pool]}

    def _load(self, now_s: float, load: Load) -> ModelLoad:
        return ModelLoad(
            waiting=load.waiting,
            delivered=load.in_flight,
            arrivals_per_s=self._rate.note(now_s, load.submitted),
            mean_tokens=MEAN_TOKENS if self._costs.mean_tokens is None else self._costs.mean_tokens,
            slack_s=self._costs.slack_s,
            oldest_s=load.oldest_s,
            submitted=load.submitted,
        )

    def _watched(self, now_s: float) -> Sequence[SimulatedPool]:
        for pool in self._pools:
            self._start_ups[pool.name].note(now_s, len(pool.running), pool.target)
        return self._pools

    def _state(self, pool: SimulatedPool) -> tuple[str, PoolState]:
        start_up_s = self._start_ups[pool.name].start_up_s
        costs = {self._model: self._costs.of(pool.spec.name)}
        return pool.name, PoolState(len(pool.running), pool.target, start_up_s, costs)
