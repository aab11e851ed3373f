"""Which waiting jobs go together: the pure heart of the router.

`BatchFormer` holds the jobs of one model that a router has read and not yet dispatched. It has no clock, no
Redis, no Ray and no torch: time comes in as an argument, so the simulator and the tests run the very class
that production runs.

*Urgency is one number.* A job is due at its deadline, less the time its answer takes, or when the patience
of its priority is over since it was submitted, whichever is earlier. Batches are filled in the order of
dueness. Since a job's due time never moves while later jobs are due ever later, nothing starves: a low
priority or an odd length delays a job, but only behind work that is older or more urgent.

*Nobody crowds out others*: `FairQueue` says whose turn it is, between tenants and between priorities.

*A batch that is not full waits for company only where company is coming*: while jobs arrive densely, such
batches leave `linger_s` apart; a lone job, and a producer that waits for each answer, never wait at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from headrace_cluster.scheduling.fair_queue import FairQueue
from headrace_cluster.scheduling.waiting import Item, WaitingHeap, WaitingJob

__all__ = ["BatchFormer", "FormingPolicy", "WaitingJob"]

_LOOK_PAST: Final = 32
"""How many jobs that do not fit are passed over in search of ones that do."""
_CHOICE: Final = 4
"""With padding: among how many batches' worth of the most urgent jobs alike lengths are sought."""
_DENSE: Final = 8.0
"""From how many arrivals expected within `linger_s` on waiting pays."""
_RATE_OVER_S: Final = 0.05
"""Over how long the rate of arrivals is averaged."""


@dataclass(frozen=True, slots=True)
class FormingPolicy:
    """What a batch may be."""

    max_jobs: int = 64
    max_tokens: int = 4096
    """The work budget: the sum of the jobs' tokens, or, where shorter jobs are padded, longest × number."""
    max_bytes: int = 3 << 20
    """Payload bytes of one batch: what one message to a replica may carry."""
    linger_s: float = 0.005
    """Shortest time between two batches that are not full, while jobs arrive densely."""
    patience_s: tuple[float, float, float] = (0.0, 1.0, 10.0)
    """For each priority, how long after its submission a job without a deadline is due."""
    shares: tuple[int, int, int] = (12, 3, 1)
    """How the work is divided between priorities that all have more waiting than can be done."""
    padded: bool = False
    """Whether the engine pads jobs of a batch to the longest: then alike lengths go together."""


class BatchFormer:
    """The waiting jobs of one model, and the batches they leave in."""

    def __init__(self, policy: FormingPolicy) -> None:
        self.policy = policy
        self.run_s = 0.0
        """How long an answer usually takes once its job is dispatched."""
        self._queue = FairQueue(batch_tokens=policy.max_tokens, shares=policy.shares)
        self._by_deadline = WaitingHeap()
        self._sequence = 0
        self._last_formed_s = -math.inf
        self._arrivals = 0.0
        self._arrivals_at_s = 0.0

    def __len__(self) -> int:
        return self._queue.jobs

    @property
    def bytes(self) -> int:
        """Payload bytes of all waiting jobs."""
        return self._queue.bytes

    @property
    def tokens(self) -> int:
        """Tokens of all waiting jobs."""
        return self._queue.tokens

    @property
    def earliest_deadline_s(self) -> float | None:
        """The first deadline of all waiting jobs; None if none has one."""
        head = self._by_deadline.head()
        return None if head is None else head[0]

    def waiting_of(self, priority: int) -> int:
        """How many jobs of a priority wait."""
        return self._queue.of_priority[priority]

    def note_arrivals(self, count: int, now_s: float) -> None:
        """Jobs have come, and are about to be added: this is how dense arrivals are known."""
        self._arrivals = self._recent_arrivals(now_s) + count
        self._arrivals_at_s = now_s

    def add(self, job: WaitingJob, *, run_s: float | None = None) -> None:
        """Take a job in; `run_s` is how long its answer takes once it is dispatched, if not as long as usual."""
        due_s = job.submitted_s + self.policy.patience_s[job.priority]
        if job.deadline_s is not None:
            due_s = min(due_s, job.deadline_s - (self.run_s if run_s is None else run_s))
        job.due_s = due_s
        self._sequence += 1
        if job.deadline_s is not None:
            self._by_deadline.push((job.deadline_s, self._sequence, job), waiting=self._queue.jobs)
        self._queue.add((due_s, self._sequence, job))

    def discard(self, job: WaitingJob) -> bool:
        """Take a job out that shall not run any more. False if it is not waiting here."""
        if not job.waiting:
            return False
        self._queue.leave(job)
        return True

    def expired(self, now_s: float) -> list[WaitingJob]:
        """Take out every job whose deadline has passed."""
        late = []
        while (head := self._by_deadline.head()) is not None and head[0] <= now_s:
            job = self._by_deadline.pop()[2]
            self._queue.leave(job)
            late.append(job)
        return late

    def clear(self) -> list[WaitingJob]:
        """Take everything out."""
        jobs = self._queue.waiting()
        for job in jobs:
            self.discard(job)
        return jobs

    @property
    def full(self) -> bool:
        """Whether what waits would fill a batch."""
        policy, queue = self.policy, self._queue
        return queue.jobs >= policy.max_jobs or queue.tokens >= policy.max_tokens or queue.bytes >= policy.max_bytes

    def ready_at(self, now_s: float, *, idle: bool) -> float | None:
        """From when on a batch may be formed; None while nothing can be said to be ready.

        Args:
            idle: whether it is for a replica that has nothing to do. A busy one is only given full
                batches ahead of time: what is not full may still grow until the replica is free.
        """
        if not self._queue.jobs:
            return None
        if self.full:
            return -math.inf
        if not idle:
            return None
        return self._last_formed_s + self.policy.linger_s if self._dense(now_s) else -math.inf

    def _dense(self, now_s: float) -> bool:
        """Whether waiting for `linger_s` would bring enough company. The last that came is not its own company."""
        return (self._recent_arrivals(now_s) - 1) * self.policy.linger_s / _RATE_OVER_S >= _DENSE

    def _recent_arrivals(self, now_s: float) -> float:
        """Arrivals, each counting less the longer ago it was."""
        return self._arrivals * math.exp(-max(0.0, now_s - self._arrivals_at_s) / _RATE_OVER_S)

    def form(self, now_s: float, *, max_jobs: int | None = None) -> list[WaitingJob]:
        """The most urgent jobs that fit one batch, most urgent first. Empty if none waits.

        The first job always goes, alone if it is larger than the budgets; the rest keep within them.

        Args:
            now_s: the time.
            max_jobs: how many there is room for; None: as many as the policy allows.
        """
        most = self.policy.max_jobs if max_jobs is None else min(max_jobs, self.policy.max_jobs)
        batch = self._fill_padded(most) if self.policy.padded else self._fill_packed(most)
        self._last_formed_s = now_s
        return batch

    def _fill_packed(self, most: int) -> list[WaitingJob]:
        """In the order of `_draw`, passing over a few that do not fit any more."""
        policy, batch, passed = self.policy, list[WaitingJob](), list[Item]()
        tokens = size = 0
        while len(batch) < most and len(passed) < _LOOK_PAST and (item := self._queue.draw()):
            job = item[2]
            if batch and (tokens + job.tokens > policy.max_tokens or size + job.bytes > policy.max_bytes):
                passed.append(item)
                continue
            batch.append(job)
            tokens, size = tokens + job.tokens, size + job.bytes
        self._queue.put_back(passed)
        return batch

    def _fill_padded(self, most: int) -> list[WaitingJob]:
        """The most urgent job, and those nearest to it in length among the next most urgent."""
        candidates = self._most_urgent(_CHOICE * most)
        if not candidates:
            return []
        first = candidates[0][2]
        # The sort is stable: among equals the more urgent comes first.
        others = sorted((item[2] for item in candidates[1:]), key=lambda job: abs(job.tokens - first.tokens))
        batch, longest, size = [first], first.tokens, first.bytes
        for job in others:
            longest_then = max(longest, job.tokens)
            if len(batch) == most:
                break
            if longest_then * (len(batch) + 1) > self.policy.max_tokens or size + job.bytes > self.policy.max_bytes:
                continue
            batch.append(job)
            longest, size = longest_then, size + job.bytes
        chosen = set(map(id, batch))
        self._queue.put_back([item for item in candidates if id(item[2]) not in chosen])
        return batch

    def _most_urgent(self, count: int) -> list[Item]:
        """Up to `count` waiting jobs, taken from their flows."""
        items: list[Item] = []
        while len(items) < count and (item := self._queue.draw()):
            items.append(item)
        return items

    def settle(self, job: WaitingJob, tokens: int) -> None:
        """A job that left with an estimate has turned out to be so many tokens; see `FairQueue.settle`."""
        self._queue.settle(job, tokens)
