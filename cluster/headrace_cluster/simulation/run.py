"""One model under one policy, from its first arrival to its last answer: the event loop.

Arrivals lie in a list; everything else that will happen is in a heap. After whatever happened, batches are sent as
long as there are any, as a router does when it is woken. No time passes but from one event to the next.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from headrace_cluster.simulation.jobs import Jobs
from headrace_cluster.simulation.outcome import Fate, Outcome
from headrace_cluster.simulation.pools import Flight, Replica, SimulatedPool
from headrace_cluster.simulation.routing import Routing
from headrace_cluster.simulation.scaling import Load, Scaling
from headrace_cluster.simulation.trace import Loss

__all__ = ["ModelRun"]

_SAMPLES: Final = 400
"""How often the number of waiting jobs is noted in the course of a run."""
_LOOK_EVERY_S: Final = 0.25
_LONGEST_S: Final = 6 * 3600.0
"""A run that is not over so long after ten times its horizon never will be."""
_LEAST_WAIT_S: Final = 1e-6
"""Below this, adding a wait to the time may not change it."""


class ModelRun:
    """Runs once.

    Args:
        jobs: what arrives.
        pools: where it may run, by their full names.
        routing: who sends what where.
        scaling: who says how many replicas there are.
        losses: replicas that die.
        overhead_s: what a batch takes beside its run.
        horizon_s: until when replicas are paid for even if nothing is left to do.
        seed: of what is drawn while it runs: stragglers.
    """

    def __init__(
        self,
        jobs: Jobs,
        pools: Sequence[SimulatedPool],
        routing: Routing,
        scaling: Scaling,
        *,
        losses: Sequence[Loss] = (),
        overhead_s: float = 0.0,
        horizon_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._jobs = jobs
        self._pools = {pool.name: pool for pool in pools}
        self._routing = routing
        self._scaling = scaling
        self._overhead_s = overhead_s
        self._horizon_s = horizon_s
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._arrived = 0
        self._left = len(jobs)
        self._wake_s = math.inf
        self._oldest = 0
        self._start_s = [math.nan] * len(jobs)
        self._end_s = [math.nan] * len(jobs)
        self._fate = bytearray(len(jobs))
        self._replicas: dict[str, Replica] = {}
        self._outcome = Outcome(np.empty(0), np.empty(0), np.empty(0, dtype=np.int8))
        self._schedule(losses)

    def _schedule(self, losses: Sequence[Loss]) -> None:
        for loss in losses:
            for pool in self._pools.values():
                if pool.spec.name == loss.pool:
                    self._at(loss.at_s, partial(self._lose, pool, loss.share))
        if self._scaling.every_s < math.inf:
            self._at(0.0, self._scale)
        last_s = max(self._horizon_s, self._jobs.offset_s[-1] if self._left else 0.0)
        self._sample_every_s = last_s / _SAMPLES if last_s else 1.0
        self._at(0.0, self._sample)
        self._at(_LOOK_EVERY_S, self._look)

    def _at(self, time_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def run(self) -> Outcome:
        """Until every job has ended, and the horizon is reached."""
        self._replicas_changed()
        arrivals_s, routing = self._jobs.offset_s, self._routing
        number, give_up_s = len(arrivals_s), 10 * self._horizon_s + _LONGEST_S
        now_s = 0.0
        while self._left or (self._events and self._events[0][0] <= self._horizon_s):
            next_s = self._events[0][0] if self._events else math.inf
            if self._arrived < number and arrivals_s[self._arrived] <= next_s:
                now_s = arrivals_s[self._arrived]
                changes = routing.arrived(self._arrived)
                self._arrived += 1
                if changes:
                    self._send(now_s)
                continue
            if next_s > give_up_s:
                raise RuntimeError(f"{self._left} jobs never end")
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)
        return self._close(max(now_s if self._left else self._last_s(), self._horizon_s))

    def _last_s(self) -> float:
        return max(self._end_s, default=0.0)

    # -- what happens ---------------------------------------------------------------------------------------

    def _send(self, now_s: float) -> None:
        """Fill slots while there are any."""
        routing = self._routing
        for job in routing.expired(now_s):
            self._ended(job, Fate.EXPIRED, now_s)
        while (chosen := routing.next_batch(now_s)) is not None:
            jobs, name, ticket = chosen
            self._start(Flight(jobs, self._replicas[name], ticket, sent_s=now_s), now_s)
        wait_s = routing.wait_s(now_s)
        if wait_s is not None and now_s + wait_s < self._wake_s:
            self._wake_s = now_s + max(wait_s, _LEAST_WAIT_S)
            self._at(self._wake_s, self._wake)

    def _wake(self, now_s: float) -> None:
        if now_s >= self._wake_s:
            self._wake_s = math.inf
        self._send(now_s)

    def _start(self, flight: Flight, now_s: float) -> None:
        """A batch reaches its replica, as a whole or job by job."""
        replica = flight.replica
        replica.flights[flight] = None
        for job in flight.jobs:
            if math.isnan(self._start_s[job]):
                self._start_s[job] = now_s
        self._outcome.batches += 1
        if not self._jobs.work.slots:
            self._compute(flight, flight.jobs, now_s)
            return
        for job in list(flight.jobs):
            self._compute(flight, [job], now_s)

    def _compute(self, flight: Flight, jobs: list[int], now_s: float) -> None:
        run_s = self._jobs.run_s(jobs) / flight.replica.pool.spec.speed
        work = self._jobs.work
        if work.slow_share and self._random.random() < work.slow_share:
            run_s *= work.slow_factor
        done_s = flight.replica.run(now_s, run_s) + self._overhead_s
        self._at(done_s, partial(self._done, flight, jobs, run_s))

    def _done(self, flight: Flight, jobs: list[int], run_s: float, now_s: float) -> None:
        """Answers of a batch, or of one job of it."""
        replica = flight.replica
        if flight not in replica.flights:  # the replica died meanwhile
            return
        self._count(jobs, run_s)
        flight.jobs = [job for job in flight.jobs if job not in jobs] if len(jobs) < len(flight.jobs) else []
        if not flight.jobs:
            del replica.flights[flight]
        for job in self._routing.came_back(flight.ticket, jobs, now_s, run_s, left=len(flight.jobs)):
            self._ended(job, Fate.ANSWERED, now_s)
        replica.pool.settle(replica, now_s)
        self._send(now_s)

    def _count(self, jobs: list[int], run_s: float) -> None:
        outcome = self._outcome
        outcome.busy_s += run_s
        outcome.real_tokens += self._jobs.real_tokens(jobs)
        outcome.computed_tokens += self._jobs.computed_tokens(jobs)

    def _ended(self, job: int, fate: Fate, now_s: float) -> None:
        if self._fate[job]:
            raise RuntimeError(f"job {job} ended twice")
        self._fate[job] = fate
        self._end_s[job] = now_s
        if fate == Fate.EXPIRED:
            self._start_s[job] = now_s
        self._left -= 1

    # -- replicas -------------------------------------------------------------------------------------------

    def _replicas_changed(self) -> None:
        running = [replica for pool in self._pools.values() for replica in pool.running]
        self._replicas = {replica.name: replica for replica in running}
        self._routing.replicas_changed(running)

    def _scale(self, now_s: float) -> None:
        """Ask how many there shall be."""
        for name, (target, reason) in self._scaling.decide(now_s, self._load(now_s)).items():
            self._outcome.decisions += 1
            self._outcome.reasons.append((now_s, name, target, reason))
            self._scale_pool(self._pools[name], target, now_s)
        self._at(now_s + self._scaling.every_s, self._scale)

    def _scale_pool(self, pool: SimulatedPool, target: int, now_s: float) -> None:
        before = len(pool.running)
        for replica in pool.scale(target, now_s):
            self._at(now_s + pool.spec.start_up_s, partial(self._up, replica))
        if len(pool.running) != before:
            self._replicas_changed()

    def _up(self, replica: Replica, now_s: float) -> None:
        if replica.pool.up(replica):
            self._replicas_changed()
            self._send(now_s)

    def _lose(self, pool: SimulatedPool, share: float, now_s: float) -> None:
        """Nodes go: what ran there runs again, and Serve starts as many others."""
        lost = pool.lose(share, now_s)
        self._replicas_changed()
        for replica in lost:
            for flight in list(replica.flights):
                del replica.flights[flight]
                self._outcome.returned += len(flight.jobs)
                for job in self._routing.lost(flight.ticket, flight.jobs, now_s):
                    self._ended(job, Fate.DEAD, now_s)
            pool.settle(replica, now_s)
        self._scale_pool(pool, pool.target, now_s)
        self._send(now_s)

    def _load(self, now_s: float) -> Load:
        waiting = self._routing.waiting
        return Load(
            waiting, self._arrived - (len(self._jobs) - self._left) - waiting, self._arrived, self._oldest_s(now_s)
        )

    def _oldest_s(self, now_s: float) -> float:
        """Since when the oldest waits that was never sent: jobs start nearly in order, so the search is short."""
        while self._oldest < self._arrived and not math.isnan(self._start_s[self._oldest]):
            self._oldest += 1
        return now_s - self._jobs.offset_s[self._oldest] if self._oldest < self._arrived else 0.0

    def _look(self, now_s: float) -> None:
        """What a router sees to by the clock: who is late, and what expires while nothing else happens."""
        if self._routing.look(now_s) or self._routing.waiting:
            self._send(now_s)
        if self._left:
            self._at(now_s + _LOOK_EVERY_S, self._look)

    def _sample(self, now_s: float) -> None:
        self._outcome.waiting.append((now_s, self._routing.waiting))
        if self._left:
            self._at(now_s + self._sample_every_s, self._sample)

    def _close(self, now_s: float) -> Outcome:
        outcome = self._outcome
        for pool in self._pools.values():
            pool.close(now_s)
            outcome.held_s += pool.held_s
            outcome.cost += pool.held_s / pool.lanes * pool.spec.cost
            outcome.replicas.extend(pool.bill)
        outcome.replicas.sort()
        outcome.ended_s = self._last_s()
        outcome.start_s, outcome.end_s = np.array(self._start_s), np.array(self._end_s)
        outcome.fate = np.frombuffer(bytes(self._fate), dtype=np.int8)
        return outcome
