"""Which replicas do one model's jobs: the running ones, those that start, and those that may be asked for.

Whole replicas are taken where a job costs least among those that answer in time, and what is left for a part of one
where that part costs least: a GPU is not started for what a core can do. Nor is anything started, for work that is
late, that would run only when the work is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace_cluster.autoscaling.aim import aim_of, answer_s, horizon_s, job_s, steady_per_s
from headrace_cluster.autoscaling.observation import ModelLoad, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan
from headrace_cluster.scheduling.cost_model import CostModel

__all__ = ["Filling", "Room"]

_LEAST_SHARE = 1 / 3
"""What a replica is worth at least that starts too late for the work there is: other work will come."""
_GOOD_TIME = 0.5
"""The part of its horizon within which work is done in good time."""
_SOON_S = 5.0
"""How far ahead is looked, besides the time that a start takes."""
_DUST = 1e-9


@dataclass(frozen=True, slots=True)
class Room:
    """The replicas that a pool has and may have."""

    running: int
    starting: int
    """Replicas that were asked for and do not run yet."""
    ready_in_s: float
    """When those will run."""
    more: int
    """Replicas that may still be asked for."""
    start_up_s: float
    """How long those would take to start."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Replicas of one pool that can begin at the same time."""

    pool: PoolPlan
    free: float
    """How many of them nobody has been given yet."""
    ready_in_s: float
    per_s: float
    """Jobs that one of them does in a second."""
    jobs_each: float
    """What one of them does of what is asked for."""
    backlog_each: float
    """What one of them does in time of what is there."""
    cost_per_job: float
    answers_in_s: float
    in_time: bool

    @property
    def order(self) -> tuple[bool, float, float]:
        """In time before late; then the cheapest, and of those that are late the first."""
        return (False, self.cost_per_job, self.answers_in_s) if self.in_time else (True, self.answers_in_s, 0.0)

    def does_by(self, time_s: float) -> float:
        """Jobs that one of them has done so many seconds from now."""
        return self.per_s * max(0.0, time_s - self.ready_in_s)


class Filling:
    """Gives one model's jobs to replicas.

    Args:
        model: whose.
        load: its jobs.
        pools: all pools, by name.
        states: how they are.
        rooms: for each pool, what it has and may have.
        used: for each pool, how many replicas other models need.
        more: whether replicas may be asked for; else those that there are do all.
    """

    def __init__(
        self,
        model: ModelPlan,
        load: ModelLoad,
        pools: Mapping[str, PoolPlan],
        states: Mapping[str, PoolState],
        rooms: Mapping[str, Room],
        used: Mapping[str, float],
        *,
        more: bool,
    ) -> None:
        self._model, self._load, self._aim = model, load, aim_of(model, load)
        self._pools = [(pools[name], states[name], rooms[name]) for name in model.pools if name in rooms]
        self._others = used
        self._more = more
        self._taken: list[tuple[float, _Stretch]] = []
        self._done = 0.0
        """Jobs of what is there that those do which were taken."""
        self.replicas: dict[str, float] = {}
        """How many of each pool were taken."""
        self.unmet = False
        """Whether the work is more than all pools may do in time."""

    def does_in_good_time(self) -> bool:
        """Whether what there is does the work in good time, also if it goes on like this while another one starts.

        A start costs as much as it takes, so none is made for what is chance, and over in a moment.
        """
        there = self._stretches(steady=False)
        per_s = sum(each.free * each.per_s for each in there)
        if not per_s:
            return False
        soon_s = _SOON_S + min(room.start_up_s for _, _, room in self._pools)
        more_per_s = max(0.0, steady_per_s(self._model, self._load) - per_s)
        good_s = _GOOD_TIME * self._aim.within_s
        return self._load.live + more_per_s * soon_s <= sum(each.free * each.does_by(good_s) for each in there)

    def fill(self) -> None:
        """Take as many as do in a second what arrives in one, and as many more as do the rest of what is there."""
        self._fill(steady_per_s(self._model, self._load), steady=True)
        self._fill(self._aim.jobs - self._done, steady=False)

    @property
    def price(self) -> float:
        """What a second of those costs that were taken, of which nobody else needs a part."""
        return sum(
            pool.cost * (_whole(self._used(pool.name)) - _whole(self._others.get(pool.name, 0.0)))
            for pool, _, _ in self._pools
        )

    def _fill(self, jobs: float, *, steady: bool) -> None:
        """Take whole replicas, the best first, and a part of one in the end."""
        while jobs > _DUST:
            stretches = self._stretches(steady=steady)
            if not stretches:
                self.unmet |= self._more
                return
            best = stretches[0]
            if not steady and not best.in_time and self._does_by(best.ready_in_s) >= self._aim.jobs:
                self.unmet = True
                return
            wanted = jobs / best.jobs_each
            whole = best.free if wanted >= best.free else self._up_to_whole(best.pool.name, wanted)
            if whole > _DUST:
                jobs -= self._take(best, whole)
                continue
            cheapest = min(stretches, key=lambda each: self._price(each, jobs))
            jobs -= self._take(cheapest, min(cheapest.free, jobs / cheapest.jobs_each))

    def _does_by(self, time_s: float) -> float:
        """Jobs that what was taken has done so many seconds from now."""
        return sum(replicas * stretch.does_by(time_s) for replicas, stretch in self._taken)

    def _take(self, stretch: _Stretch, replicas: float) -> float:
        name = stretch.pool.name
        self.replicas[name] = self.replicas.get(name, 0.0) + replicas
        self._taken.append((replicas, stretch))
        self._done += replicas * stretch.backlog_each
        return replicas * stretch.jobs_each

    def _used(self, pool: str) -> float:
        return self._others.get(pool, 0.0) + self.replicas.get(pool, 0.0)

    def _up_to_whole(self, pool: str, wanted: float) -> float:
        used = self._used(pool)
        return math.floor(used + wanted + _DUST) - used

    def _price(self, stretch: _Stretch, jobs: float) -> tuple[bool, bool, float, tuple[bool, float, float]]:
        """What it costs to have this do the rest: only replicas that nobody has begun to use cost anything."""
        used, wanted = self._used(stretch.pool.name), jobs / stretch.jobs_each
        begun = _whole(used + wanted) - _whole(used)
        return not stretch.in_time, wanted > stretch.free + _DUST, stretch.pool.cost * begun, stretch.order

    def _stretches(self, *, steady: bool) -> Sequence[_Stretch]:
        found = [each for pool in self._pools for each in self._of(*pool, steady=steady)]
        return sorted((each for each in found if each.free > _DUST), key=lambda each: each.order)

    def _of(self, pool: PoolPlan, state: PoolState, room: Room, *, steady: bool) -> list[_Stretch]:
        """Those of a pool that run, those that start, and those that may be asked for."""
        cost = state.costs.get(self._model.name) or CostModel(pool.prior)
        used, begun = self._used(pool.name), room.running + room.starting
        free = (
            (room.running - used, 0.0),
            (begun - max(used, room.running), room.ready_in_s),
            (begun + room.more * self._more - max(used, begun), room.start_up_s),
        )
        make = self._steady_stretch if steady else self._backlog_stretch
        return [make(pool, cost, count, wait_s) for count, wait_s in free if count > 0]

    def _steady_stretch(self, pool: PoolPlan, cost: CostModel, free: float, wait_s: float) -> _Stretch:
        """In the long run it does not matter how long one takes to start."""
        now = self._backlog_stretch(pool, cost, free, wait_s)
        each_s = job_s(self._model, self._load, cost)
        answers_in_s = now.answers_in_s - wait_s
        return replace(
            now,
            jobs_each=1 / each_s,
            backlog_each=now.backlog_each if now.in_time else 0.0,
            cost_per_job=pool.cost * each_s,
            answers_in_s=answers_in_s,
            in_time=answers_in_s <= horizon_s(self._model, self._load),
        )

    def _backlog_stretch(self, pool: PoolPlan, cost: CostModel, free: float, wait_s: float) -> _Stretch:
        each_s = job_s(self._model, self._load, cost)
        share = max(_LEAST_SHARE, 1 - wait_s / self._aim.within_s)
        answers_in_s = wait_s + answer_s(self._model, self._load, cost)
        jobs_each = share * self._aim.within_s / each_s
        return _Stretch(
            pool,
            free,
            ready_in_s=wait_s,
            per_s=1 / each_s,
            jobs_each=jobs_each,
            backlog_each=jobs_each,
            cost_per_job=pool.cost * each_s / share,
            answers_in_s=answers_in_s,
            in_time=answers_in_s <= self._aim.within_s,
        )


def _whole(replicas: float) -> int:
    return math.ceil(replicas - _DUST)
