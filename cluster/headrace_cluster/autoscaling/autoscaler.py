"""How many replicas each pool gets: decided by the work there is, held while that is not known, and with reasons.

More replicas are asked for at once, fewer only when fewer have been enough for a whole cool-down, and none only when
no job has come for `idle_s`. The arithmetic is in `demand`; here is what has to do with time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from headrace_cluster.autoscaling.demand import Demand, share_out
from headrace_cluster.autoscaling.filling import Room
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.reasons import Told, how_many

__all__ = ["STALE_S", "Autoscaler", "Cause", "Decision"]

STALE_S: Final = 5.0
"""From what age on an observation says nothing about now."""
_JUMP_S: Final = 60.0
"""No two decisions are that far apart, unless the clock jumped or the process slept."""
_BAND: Final = 0.05
"""How much more than now the replicas that stay must be able to do, before others are given back."""
_STUCK_STARTS: Final = 3.0
_STUCK_S: Final = 60.0
"""A replica that is not there after so long, and after three usual starts, has no node to start on."""
_LATE_STARTS: Final = 1.5
"""After so many usual starts a start is late, and is thought to take so many times as long as it has taken yet."""
_EPSILON: Final = 1e-6


Cause = Literal["backlog", "arrivals", "minimum", "cool_down", "no_node", "stale", "clock"]


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a pool shall have, and why."""

    pool: str
    replicas: int
    reasons: tuple[str, ...]
    before: int = 0
    """How many it was to have."""
    cause: Cause = "backlog"
    """The first of the reasons in a word, for metrics."""

    @property
    def holding(self) -> bool:
        """Whether it was decided not to decide: too little is known."""
        return self.cause in ("stale", "clock")


@dataclass(slots=True)
class _History:
    """What one pool has been through."""

    enough: deque[tuple[float, int]] = field(default_factory=deque)
    """When, and how many replicas were enough then; falling, so that the first is the most of the cool-down."""
    since_s: float | None = None
    """Since when it has been looked at."""
    target: int = 0
    running: int = 0
    asked_s: float = 0.0
    """When those that start were asked for, on average."""
    moved_s: float = 0.0
    """When last one of them began to run, or none was missing."""

    def note(self, now_s: float, state: PoolState) -> None:
        """Take in how the pool is."""
        if self.since_s is None:
            self.since_s = self.moved_s = self.asked_s = now_s
        if state.replicas > self.running or state.replicas >= state.target:
            self.moved_s = now_s
        self.ask(now_s, state.target, state.replicas)

    def ask(self, now_s: float, target: int, running: int) -> None:
        """So many shall run, and so many do."""
        more, starting = max(0, target - self.target), max(0, self.target - running)
        if more:
            self.asked_s = (starting * self.asked_s + more * now_s) / (starting + more)
        self.target, self.running = target, running

    def start_up_s(self, now_s: float, usual_s: float) -> float:
        """How long a start takes that goes on: else the first of a pool would seem nearly over for as long as it takes.

        Meanwhile nothing would be done for the work there is.
        """
        took_s = now_s - self.moved_s if self.running < self.target else 0.0
        return usual_s if took_s <= _LATE_STARTS * usual_s else _LATE_STARTS * took_s

    def most_enough(self, now_s: float, replicas: int, within_s: float) -> int:
        """The most that was needed within the last seconds, this time included."""
        while self.enough and self.enough[-1][1] <= replicas:
            self.enough.pop()
        self.enough.append((now_s, replicas))
        while self.enough[0][0] < now_s - within_s:
            self.enough.popleft()
        return self.enough[0][1]


@dataclass(slots=True)
class _Need:
    """How many replicas of a pool it takes."""

    now: int
    enough: int
    """How many suffice even if a little more than now were to do, and for what is being run."""
    least: int = 0


class Autoscaler:
    """Decides for all pools of one application together. It knows no clock: whoever asks says what time it is.

    Args:
        plan: the models and pools, with their bounds and aims.
        stale_s: from what age on an observation is not acted on.
    """

    def __init__(self, plan: ScalingPlan, *, stale_s: float = STALE_S) -> None:
        self.plan = plan
        self._stale_s = stale_s
        self._pools: dict[str, _History] = {}
        self._active_s: dict[str, float] = {}
        self._submitted: dict[str, int] = {}
        self._last_s: float | None = None

    def decide(self, now_s: float, seen: Observation) -> list[Decision]:
        """A decision for each pool that has bounds and is known.

        Where nothing can be decided, each pool keeps what it was to have, within its bounds, and the reason says why.
        """
        jumped_s, self._last_s = 0.0 if self._last_s is None else now_s - self._last_s, now_s
        if not 0 <= jumped_s <= _JUMP_S:
            self._forget_times()
            return self._hold(seen, f"the clock jumped by {jumped_s:+.0f} s: holding", "clock")
        age_s = now_s - seen.taken_s
        if not -1 <= age_s <= self._stale_s:
            return self._hold(seen, f"what is known of the backlog is {age_s:.0f} s old: holding", "stale")
        return self._decide(now_s, seen)

    def _forget_times(self) -> None:
        """Cool-downs and idle times begin anew."""
        self._pools.clear()
        self._active_s.clear()

    def _hold(self, seen: Observation, reason: str, cause: Cause) -> list[Decision]:
        held = []
        for pool in self.plan.pools:
            if (state := seen.pools.get(pool.name)) is not None and not pool.fixed:
                held.append(Decision(pool.name, pool.bound(state.target), (reason,), state.target, cause))
        return held

    def _decide(self, now_s: float, seen: Observation) -> list[Decision]:
        idle = self._idle_models(now_s, seen)
        rooms, stuck = self._rooms(now_s, seen)
        demand = share_out(self.plan, seen, rooms, idle)
        if stuck:  # what they would do if they could is asked for all the same: a node may come
            rooms_if = {name: _room_if_placed(room, stuck.get(name)) for name, room in rooms.items()}
            wished = share_out(self.plan, seen, rooms_if, idle)
            for name in stuck:
                demand.replicas[name] = max(demand.replicas.get(name, 0.0), wished.replicas.get(name, 0.0))
        needs = {pool.name: self._need(pool, demand, seen) for pool in self.plan.pools if pool.name in seen.pools}
        self._keep_awake(needs, seen, idle)
        told = Told(self.plan, seen, demand, stuck)
        return [
            self._of_pool(now_s, pool, seen.pools[pool.name], needs[pool.name], told)
            for pool in self.plan.pools
            if pool.name in needs and not pool.fixed
        ]

    # -- what is known ------------------------------------------------------------------------------------

    def _idle_models(self, now_s: float, seen: Observation) -> set[str]:
        """Models for which nothing has come for their `idle_s`, and for which nothing is left to do."""
        idle = set()
        for model in self.plan.models:
            load = seen.models.get(model.name, ModelLoad())
            if load.live or load.submitted != self._submitted.get(model.name, load.submitted):
                self._active_s[model.name] = now_s
            self._submitted[model.name] = load.submitted
            if now_s - self._active_s.setdefault(model.name, now_s) >= model.idle_s and not load.live:
                idle.add(model.name)
        return idle

    def _rooms(self, now_s: float, seen: Observation) -> tuple[dict[str, Room], dict[str, Room]]:
        """What each pool has and may have; and, of those that get no replicas, what they would have."""
        rooms, stuck = {}, {}
        for pool in self.plan.pools:
            if (state := seen.pools.get(pool.name)) is None:
                continue
            history = self._pools.setdefault(pool.name, _History())
            history.note(now_s, state)
            running = min(state.replicas, state.target, pool.max_replicas)
            starting = max(0, min(state.target, pool.max_replicas) - running)
            start_up_s = history.start_up_s(now_s, state.start_up_s)
            ready_in_s = max(0.0, history.asked_s + start_up_s - now_s)
            room = Room(running, starting, ready_in_s, pool.max_replicas - running - starting, start_up_s)
            if self._is_stuck(state, now_s - history.moved_s):
                stuck[pool.name], room = room, Room(running, 0, 0.0, 0, start_up_s)
            rooms[pool.name] = room
        return rooms, stuck

    @staticmethod
    def _is_stuck(state: PoolState, waited_s: float) -> bool:
        if state.unplaceable:
            return True
        return state.replicas < state.target and waited_s > max(_STUCK_S, _STUCK_STARTS * state.start_up_s)

    # -- what is decided ----------------------------------------------------------------------------------

    def _need(self, pool: PoolPlan, demand: Demand, seen: Observation) -> _Need:
        replicas = demand.replicas.get(pool.name, 0.0)
        with_band = math.ceil(replicas * (1 + _BAND) - _EPSILON)
        return _Need(pool.bound(math.ceil(replicas - _EPSILON)), pool.bound(max(with_band, self._in_use(pool, seen))))

    def _in_use(self, pool: PoolPlan, seen: Observation) -> int:
        """How many replicas what is being run fills at least; no more than there are.

        Of a model with replicas elsewhere, a part of a replica keeps none: its next jobs go to the others.
        """
        state = seen.pools[pool.name]
        running = min(state.replicas, state.target)
        full = 0
        for model in self.plan.models:
            if pool.name in model.pools and (load := seen.models.get(model.name)) is not None:
                part = self._part_here(model, pool, seen)
                filled = part * load.delivered / (model.slots or 2 * model.max_jobs)
                full += math.ceil(filled) if part == 1 else int(filled)
        return min(running, full)

    @staticmethod
    def _part_here(model: ModelPlan, pool: PoolPlan, seen: Observation) -> float:
        """What part of a model's replicas are of this pool."""
        replicas = {name: seen.pools[name].replicas for name in model.pools if name in seen.pools}
        return replicas[pool.name] / (sum(replicas.values()) or 1)

    def _keep_awake(self, needs: Mapping[str, _Need], seen: Observation, idle: set[str]) -> None:
        """Leave to each model that is not idle one replica of those that it has."""
        costs = {pool.name: pool.cost for pool in self.plan.pools}
        for model in self.plan.models:
            begun = [name for name in model.pools if name in needs and seen.pools[name].target]
            served = any(needs[name].enough and seen.pools[name].replicas for name in begun)
            if begun and not served and model.name not in idle:
                stays = min(begun, key=lambda name: (not seen.pools[name].replicas, costs[name], name))
                needs[stays].least = 1

    def _of_pool(self, now_s: float, pool: PoolPlan, state: PoolState, need: _Need, told: Told) -> Decision:
        replicas, words = self._replicas(now_s, pool, state, need)
        replicas = pool.bound(replicas)
        cause = "cool_down" if replicas > need.enough else told.cause(pool)
        return Decision(pool.name, replicas, (*told.of(pool), *words), state.target, cause)

    def _replicas(self, now_s: float, pool: PoolPlan, state: PoolState, need: _Need) -> tuple[int, tuple[str, ...]]:
        """How many, and what time has to do with it."""
        history, cool_down_s = self._pools[pool.name], pool.cool_down(state.start_up_s)
        most = max(need.least, history.most_enough(now_s, max(need.now, need.enough), cool_down_s))
        if need.now > state.target:
            history.ask(now_s, need.now, state.replicas)
            return need.now, ()
        if most >= state.target:
            return state.target, ()
        assert history.since_s is not None
        if now_s < history.since_s + cool_down_s:
            return state.target, (f"fewer only after a cool-down of {cool_down_s:.0f} s",)
        least = f"no more than {how_many(most)}" if most else "none was"
        return most, (f"{least} needed for {cool_down_s:.0f} s",)


def _room_if_placed(room: Room, placed: Room | None) -> Room:
    return placed or room
