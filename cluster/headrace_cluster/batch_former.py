"""Which waiting jobs go together: the pure heart of the router.

`BatchFormer` holds the jobs of one model that a router has read and not yet dispatched. It has no clock, no
Redis, no Ray and no torch: time comes in as an argument, so the simulator and the tests run the very class
that production runs.

*Urgency is one number.* A job is due at its deadline, less the time its answer takes, or when the patience
of its priority is over since it was submitted, whichever is earlier. Batches are filled in the order of
dueness. Since a job's due time never moves while later jobs are due ever later, nothing starves: a low
priority or an odd length delays a job, but only behind work that is older or more urgent.

*Nobody crowds out others.* Between tenants of one priority, work is dealt out by deficit round robin
(Shreedhar and Varghese, SIGCOMM 1995), in tokens. Between priorities, each that waits is guaranteed a share
of the work, whatever is due in the others.

*A batch that is not full waits for company only where company is coming*: while jobs arrive densely, such
batches leave `linger_s` apart; a lone job, and a producer that waits for each answer, never wait at all.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["BatchFormer", "FormingPolicy", "WaitingJob"]

_LOOK_PAST: Final = 32
"""How many jobs that do not fit are passed over in search of ones that do."""
_CHOICE: Final = 4
"""With padding: among how many batches' worth of the most urgent jobs alike lengths are sought."""
_DENSE: Final = 8.0
"""From how many arrivals expected within `linger_s` on waiting pays."""
_SWEEP_AT: Final = 64
"""How many jobs that left may stay behind in a heap at least."""
_RATE_OVER_S: Final = 0.05
"""Over how long the rate of arrivals is averaged."""
_NOTHING: Final = (0.0, 0.0, 0.0)
_TURNS: Final = 8
"""How many tenants' turns make up a batch at least."""


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


@dataclass(slots=True, eq=False)
class WaitingJob:
    """One job in a router's hands."""

    key: Any
    """Whatever the router finds it again by; the former does not look at it."""
    tokens: int
    bytes: int
    priority: int
    submitted_s: float
    deadline_s: float | None = None
    tenant: str = ""
    """Whom the work is for."""
    attempts: int = 0
    """How often it was dispatched and came back."""
    lone_failures: int = 0
    """How often it failed while it ran alone on its replica."""
    failed_on: str | None = None
    """On which replica it did so last."""
    interrupted: bool = False
    """Whether its replica has died in the middle of it once, and nobody was blamed for that."""
    due_s: float = field(default=0.0, init=False)
    waiting: bool = field(default=False, init=False)


_Item = tuple[float, int, WaitingJob]


@dataclass(slots=True, eq=False)
class _Flow:
    """The waiting jobs of one tenant at one priority, by dueness."""

    key: tuple[int, str]
    by_due: list[_Item] = field(default_factory=list)
    jobs: int = 0
    deficit: float = 0.0
    """Tokens that it may take before others have their turn."""

    def head(self) -> _Item | None:
        """The most urgent job, which stays."""
        while self.by_due and not self.by_due[0][2].waiting:
            heapq.heappop(self.by_due)
        return self.by_due[0] if self.by_due else None


class BatchFormer:
    """The waiting jobs of one model, and the batches they leave in."""

    def __init__(self, policy: FormingPolicy) -> None:
        self.policy = policy
        self._flows: dict[tuple[int, str], _Flow] = {}
        self._rounds: tuple[deque[_Flow], ...] = (deque(), deque(), deque())
        self._entitled = list(_NOTHING)
        self._quantum = max(1, policy.max_tokens // _TURNS)
        self._by_deadline: list[_Item] = []
        self._sequence = 0
        self._jobs = 0
        self._tokens = 0
        self._bytes = 0
        self._of_priority = [0, 0, 0]
        self._last_formed_s = -math.inf
        self._arrivals = 0.0
        self._arrivals_at_s = 0.0

    def __len__(self) -> int:
        return self._jobs

    @property
    def bytes(self) -> int:
        """Payload bytes of all waiting jobs."""
        return self._bytes

    def waiting_of(self, priority: int) -> int:
        """How many jobs of a priority wait."""
        return self._of_priority[priority]

    def note_arrivals(self, count: int, now_s: float) -> None:
        """Jobs have come, and are about to be added: this is how dense arrivals are known."""
        self._arrivals = self._recent_arrivals(now_s) + count
        self._arrivals_at_s = now_s

    def add(self, job: WaitingJob, *, run_s: float = 0.0) -> None:
        """Take a job in; `run_s` is how long its answer takes once it is dispatched."""
        due_s = job.submitted_s + self.policy.patience_s[job.priority]
        if job.deadline_s is not None:
            due_s = min(due_s, job.deadline_s - run_s)
        job.due_s = due_s
        job.waiting = True
        self._sequence += 1
        flow = self._flow_of(job)
        self._push(flow.by_due, (due_s, self._sequence, job), flow.jobs)
        if job.deadline_s is not None:
            self._push(self._by_deadline, (job.deadline_s, self._sequence, job), self._jobs)
        self._count(job, 1)

    def _flow_of(self, job: WaitingJob) -> _Flow:
        """The flow a job belongs to, made where it is missing."""
        key = (job.priority, job.tenant)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key)
            self._rounds[job.priority].append(flow)
        return flow

    def _push(self, heap: list[_Item], item: _Item, jobs: int) -> None:
        """Add to a heap; jobs that left by another way are swept from it when they are the most of it."""
        if len(heap) > 2 * jobs + _SWEEP_AT:
            heap[:] = {id(kept[2]): kept for kept in heap if kept[2].waiting}.values()
            heapq.heapify(heap)
        heapq.heappush(heap, item)

    def discard(self, job: WaitingJob) -> bool:
        """Take a job out that shall not run any more. False if it is not waiting here."""
        if not job.waiting:
            return False
        self._leave(job)
        return True

    def expired(self, now_s: float) -> list[WaitingJob]:
        """Take out every job whose deadline has passed."""
        late = []
        while self._by_deadline and self._by_deadline[0][0] <= now_s:
            job = heapq.heappop(self._by_deadline)[2]
            if self.discard(job):
                late.append(job)
        return late

    def clear(self) -> list[WaitingJob]:
        """Take everything out."""
        jobs = [item[2] for flow in self._flows.values() for item in flow.by_due if item[2].waiting]
        for job in jobs:
            self.discard(job)
        return jobs

    @property
    def full(self) -> bool:
        """Whether what waits would fill a batch."""
        policy = self.policy
        return self._jobs >= policy.max_jobs or self._tokens >= policy.max_tokens or self._bytes >= policy.max_bytes

    def ready_at(self, now_s: float, *, idle: bool) -> float | None:
        """From when on a batch may be formed; None while nothing can be said to be ready.

        Args:
            idle: whether it is for a replica that has nothing to do. A busy one is only given full
                batches ahead of time: what is not full may still grow until the replica is free.
        """
        if not self._jobs:
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
        policy, batch, passed = self.policy, list[WaitingJob](), list[_Item]()
        tokens = size = 0
        while len(batch) < most and len(passed) < _LOOK_PAST and (item := self._draw()):
            job = item[2]
            if batch and (tokens + job.tokens > policy.max_tokens or size + job.bytes > policy.max_bytes):
                passed.append(item)
                continue
            batch.append(job)
            tokens, size = tokens + job.tokens, size + job.bytes
        self._put_back(passed)
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
        self._put_back([item for item in candidates if id(item[2]) not in chosen])
        return batch

    def _most_urgent(self, count: int) -> list[_Item]:
        """Up to `count` waiting jobs, taken from their flows."""
        items: list[_Item] = []
        while len(items) < count and (item := self._draw()):
            items.append(item)
        return items

    # -- whose turn it is ---------------------------------------------------------------------------------

    def _draw(self) -> _Item | None:
        """Take out the job whose turn it is, and charge for it."""
        priority = self._next_priority()
        if priority is None:
            return None
        flow = self._next_flow(self._rounds[priority])
        item = heapq.heappop(flow.by_due)
        job = item[2]
        flow.deficit -= job.tokens
        self._leave(job)
        self._charge(priority, job.tokens)
        return item

    def settle(self, job: WaitingJob, tokens: int) -> None:
        """A job that was charged for by an estimate has turned out to be so much work: the difference is made good.

        Whoever has nothing waiting any more starts anew with what comes next, as ever in these rounds. The bound of
        one batch keeps a single mistake from shutting a tenant out, and its rounds short.
        """
        difference = tokens - job.tokens
        flow = self._flows.get((job.priority, job.tenant))
        if flow is not None:
            flow.deficit = max(flow.deficit - difference, min(flow.deficit, -float(self.policy.max_tokens)))
        if self._of_priority[job.priority] != self._jobs:
            self._charge(job.priority, difference)

    def _put_back(self, items: Iterable[_Item]) -> None:
        """Return jobs that were drawn and do not go."""
        for item in items:
            job, flow = item[2], self._flow_of(item[2])
            job.waiting = True
            self._count(job, 1)
            heapq.heappush(flow.by_due, item)
            flow.deficit += job.tokens
            self._entitled[job.priority] += job.tokens

    def _next_priority(self) -> int | None:
        """One that has not had its share, else the one with the most urgent job."""
        if self._jobs in self._of_priority:  # as nearly always: all that wait are of one priority, or none waits
            return self._of_priority.index(self._jobs) if self._jobs else None
        waiting = [priority for priority in range(3) if self._of_priority[priority]]
        heads = [(self._most_urgent_of(priority), priority) for priority in waiting]
        for head, priority in heads:
            if self._entitled[priority] >= head[2].tokens:
                return priority
        return min(heads)[1]

    def _most_urgent_of(self, priority: int) -> _Item:
        return min(head for flow in self._rounds[priority] if (head := flow.head()) is not None)

    def _next_flow(self, rounds: deque[_Flow]) -> _Flow:
        """The flow whose turn it is. Those that are empty leave the round."""
        while True:
            flow = rounds[0]
            head = flow.head()
            if head is None:
                del self._flows[rounds.popleft().key]
            elif len(rounds) == 1 or flow.deficit >= head[2].tokens:
                return flow
            else:
                flow.deficit += self._quantum
                rounds.rotate(-1)

    def _charge(self, priority: int, tokens: int) -> None:
        """Work was done for a priority: each that waits is entitled to its share of as much."""
        if self._of_priority[priority] == self._jobs:  # nobody else waits
            self._entitled[:] = _NOTHING
            return
        whole = sum(self.policy.shares)
        for other in range(3):
            grown = self._entitled[other] + tokens * self.policy.shares[other] / whole
            self._entitled[other] = max(0.0, min(grown, self.policy.max_tokens)) if self._of_priority[other] else 0.0
        self._entitled[priority] = max(0.0, self._entitled[priority] - tokens)

    def _leave(self, job: WaitingJob) -> None:
        job.waiting = False
        self._count(job, -1)

    def _count(self, job: WaitingJob, sign: Literal[1, -1]) -> None:
        self._jobs += sign
        self._tokens += sign * job.tokens
        self._bytes += sign * job.bytes
        self._of_priority[job.priority] += sign
        self._flows[job.priority, job.tenant].jobs += sign
