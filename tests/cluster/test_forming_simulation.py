"""A simulated pool: the very former that production runs, against first come first served, in no real time.

One replica takes `FIXED_S` for a batch and a while for each token of it, as an encoder does. The event loop
below is the router's dispatcher reduced to its two rules: first the slot, then the batch; a busy replica is
only given full ones.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from headrace_cluster.scheduling.batch_former import BatchFormer, FormingPolicy, WaitingJob

FIXED_S = 0.004
TOKEN_S = 20e-6


@dataclass
class Outcome:
    """How the jobs fared."""

    waits_s: dict[int, list[float]]
    ended_s: float
    batches: list[int]
    computed_tokens: int

    def p99_s(self, priority: int | None = None) -> float:
        waits = sorted(w for p, ws in self.waits_s.items() for w in ws if priority in (None, p))
        return waits[int(0.99 * (len(waits) - 1))]

    @property
    def mean_s(self) -> float:
        waits = [wait for of_priority in self.waits_s.values() for wait in of_priority]
        return sum(waits) / len(waits)


class Fifo:
    """What the former is compared with: jobs in the order they came, up to the same number and budget."""

    def __init__(self, policy: FormingPolicy) -> None:
        self.policy = policy
        self._queue: deque[WaitingJob] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def note_arrivals(self, count: int, now_s: float) -> None:
        """It does not look at them."""

    def add(self, job: WaitingJob) -> None:
        self._queue.append(job)

    def ready_at(self, now_s: float, *, idle: bool) -> float | None:
        return -math.inf if self._queue and idle else None

    def form(self, now_s: float) -> list[WaitingJob]:
        batch: list[WaitingJob] = []
        while self._queue and len(batch) < self.policy.max_jobs:
            tokens = self._queue[0].tokens + sum(job.tokens for job in batch)
            if batch and tokens > self.policy.max_tokens:
                break
            batch.append(self._queue.popleft())
        return batch


class Pool:
    """One replica that computes one batch and may hold `slots`; events happen in the order of their time."""

    def __init__(self, former: BatchFormer | Fifo, *, slots: int = 2, padded: bool = False) -> None:
        self.former = former
        self.outcome = Outcome({0: [], 1: [], 2: []}, 0.0, [], 0)
        self._slots = slots
        self._padded = padded
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._held: deque[list[WaitingJob]] = deque()
        self._wake_s = -1.0

    def at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time_s, self._now_s), next(_sequence), happen))

    def run(self) -> Outcome:
        while self._events:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        return self.outcome

    def arrive(self, job: WaitingJob) -> None:
        self.former.note_arrivals(1, self._now_s)
        self.former.add(job)
        self._dispatch()

    def _dispatch(self) -> None:
        while len(self._held) < self._slots:
            ready_s = self.former.ready_at(self._now_s, idle=not self._held)
            if ready_s is None:
                return
            if ready_s > self._now_s:
                if ready_s != self._wake_s:
                    self._wake_s = ready_s
                    self.at(ready_s, self._dispatch)
                return
            self._held.append(self.former.form(self._now_s))
            if len(self._held) == 1:
                self._start()

    def _start(self) -> None:
        batch = self._held[0]
        tokens = max(j.tokens for j in batch) * len(batch) if self._padded else sum(j.tokens for j in batch)
        self.outcome.batches.append(len(batch))
        self.outcome.computed_tokens += tokens
        self.at(self._now_s + FIXED_S + tokens * TOKEN_S, self._end)

    def _end(self) -> None:
        for job in self._held.popleft():
            self.outcome.waits_s[job.priority].append(self._now_s - job.submitted_s)
        self.outcome.ended_s = self._now_s
        if self._held:
            self._start()
        self._dispatch()


_sequence = itertools.count()


def simulate(former: BatchFormer | Fifo, arrivals: list[WaitingJob], *, padded: bool = False) -> Outcome:
    """Run all arrivals through one replica."""
    pool = Pool(former, padded=padded)
    for job in arrivals:
        pool.at(job.submitted_s, partial(pool.arrive, job))
    outcome = pool.run()
    assert sum(map(len, outcome.waits_s.values())) == len(arrivals)
    return outcome


Lengths = Callable[[random.Random], int]


def traffic(count: int, per_s: float, *, tokens: Lengths, high: float = 0.0, low: float = 0.0) -> list[WaitingJob]:
    """Arrivals at random moments, the same ones every time."""
    chance, now_s, jobs = random.Random(7), 0.0, []
    for n in range(count):
        now_s += chance.expovariate(per_s)
        priority = 0 if (draw := chance.random()) < high else 2 if draw < high + low else 1
        jobs.append(WaitingJob(key=n, tokens=tokens(chance), bytes=100, priority=priority, submitted_s=now_s))
    return jobs


def heavy_tailed(chance: random.Random) -> int:
    """Lengths as texts have them: median 25, a few of hundreds."""
    return min(256, max(1, round(25 * chance.lognormvariate(0, 0.95))))


def policy(**fields: object) -> FormingPolicy:
    return FormingPolicy(**{"max_jobs": 64, "max_tokens": 2048, **fields})  # type: ignore[arg-type]


# With the heavy-tailed lengths below one replica can do about 1,250 jobs a second.


@pytest.mark.parametrize("per_s", [50, 300, 700])
def test_throughput_is_that_of_first_come_first_served(per_s: float) -> None:
    """Urgency and lingering cost no capacity: the last job ends at the same time."""
    jobs = partial(traffic, 3000, per_s, high=0.1, low=0.3, tokens=heavy_tailed)
    ours, theirs = simulate(BatchFormer(policy()), jobs()), simulate(Fifo(policy()), jobs())

    assert ours.ended_s <= theirs.ended_s * 1.02


def test_urgent_jobs_are_far_faster_under_load() -> None:
    """A tenth of high priority among more than the replica can carry."""
    jobs = partial(traffic, 4000, 1800, high=0.1, low=0.3, tokens=heavy_tailed)
    ours, theirs = simulate(BatchFormer(policy()), jobs()), simulate(Fifo(policy()), jobs())

    assert ours.p99_s(priority=0) < theirs.p99_s(priority=0) / 2
    assert ours.mean_s < theirs.mean_s * 1.1


def test_low_priority_is_slower_but_does_not_starve() -> None:
    """Its patience is ten seconds: then it is due before everything newer."""
    jobs = traffic(30_000, 1050, high=0.2, low=0.1, tokens=heavy_tailed)
    ours = simulate(BatchFormer(policy()), jobs)

    assert max(ours.waits_s[2]) < 10 + 3
    assert ours.p99_s(priority=2) > ours.p99_s(priority=0)


def test_a_lone_job_waits_for_nothing_but_the_engine() -> None:
    """Sparse traffic: the wait is the time of a batch of one."""
    ours = simulate(BatchFormer(policy()), traffic(500, 2, tokens=lambda _: 25))

    assert ours.p99_s() < 2 * (FIXED_S + 25 * TOKEN_S)


def test_batches_grow_with_the_load() -> None:
    """By themselves: what gathers while the replica computes goes together."""
    sizes = []
    for per_s in (20, 400, 1200):
        batches = simulate(BatchFormer(policy()), traffic(3000, per_s, tokens=heavy_tailed)).batches
        sizes.append(sum(batches) / len(batches))

    assert sizes[0] < 1.5
    assert sizes[0] < sizes[1] < sizes[2]


def test_alike_lengths_save_padding() -> None:
    """Where the engine pads, seeking alike lengths computes far fewer tokens than taking jobs as they come."""
    jobs = partial(traffic, 4000, 2000, tokens=heavy_tailed)
    ours = simulate(BatchFormer(policy(padded=True, max_tokens=8192)), jobs(), padded=True)
    theirs = simulate(Fifo(policy(max_tokens=8192)), jobs(), padded=True)

    assert ours.computed_tokens < 0.7 * theirs.computed_tokens
    assert ours.ended_s < theirs.ended_s


def test_an_odd_length_does_not_starve_where_lengths_are_matched() -> None:
    """One long text among a flood of short ones goes when it is due, and the flood goes on."""
    jobs = traffic(3000, 1500, tokens=lambda _: 20)
    jobs[100].tokens = 250
    ours = simulate(BatchFormer(policy(padded=True)), jobs, padded=True)
    odd_s = max(ours.waits_s[1])

    assert odd_s < 5


def test_the_simulation_can_tell_a_bad_former() -> None:
    """Sabotage: a former that sends each job alone is far slower, and the measure shows it."""
    jobs = partial(traffic, 2000, 700, tokens=heavy_tailed)
    good, bad = simulate(BatchFormer(policy()), jobs()), simulate(BatchFormer(policy(max_jobs=1)), jobs())

    assert bad.ended_s > 1.2 * good.ended_s
    assert bad.p99_s() > 5 * good.p99_s()
