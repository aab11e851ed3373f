"""Whose turn it is among jobs that wait: between tenants of one priority, and between priorities. Pure.

*Between tenants* work is dealt out by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), in tokens: each in
turn may take a quantum of it, and what it does not take now it keeps for its next turn, as long as it has jobs waiting.

*Between priorities* the most urgent job comes first, but each that waits is guaranteed a share of the work, whatever is
due in the others: work that is done entitles every priority that waits to its share of as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from headrace_cluster.scheduling.waiting import Item, WaitingHeap, WaitingJob

__all__ = ["FairQueue"]

_NOTHING: Final = (0.0, 0.0, 0.0)
_TURNS: Final = 8
"""How many tenants' turns make up a batch at least."""


@dataclass(slots=True, eq=False)
class _Flow:
    """The waiting jobs of one tenant at one priority, by dueness."""

    key: tuple[int, str]
    by_due: WaitingHeap = field(default_factory=WaitingHeap)
    jobs: int = 0
    deficit: float = 0.0
    """Tokens that it may take before others have their turn."""


class FairQueue:
    """The waiting jobs of one model, drawn one by one.

    Args:
        batch_tokens: the work of one batch. Nobody is entitled to more than that at once.
        shares: of each priority, where all have more waiting than can be done.
    """

    def __init__(self, *, batch_tokens: int, shares: tuple[int, int, int]) -> None:
        self.jobs = 0
        self.tokens = 0
        self.bytes = 0
        self.of_priority = [0, 0, 0]
        """How many jobs wait; their tokens and payload bytes; and how many of each priority."""
        self._batch_tokens = batch_tokens
        self._shares = shares
        self._quantum = max(1, batch_tokens // _TURNS)
        self._flows: dict[tuple[int, str], _Flow] = {}
        self._rounds: tuple[deque[_Flow], ...] = (deque(), deque(), deque())
        self._entitled = list(_NOTHING)

    def add(self, item: Item) -> None:
        """Take a job in, by when it is due."""
        flow = self._flow_of(item[2])
        flow.by_due.push(item, waiting=flow.jobs)
        self._enter(item[2], flow)

    def draw(self) -> Item | None:
        """Take out the job whose turn it is, and charge for it; None if none waits."""
        priority = self._next_priority()
        if priority is None:
            return None
        flow = self._next_flow(self._rounds[priority])
        item = flow.by_due.pop()
        job = item[2]
        flow.deficit -= job.tokens
        self._leave(job, flow)
        self._charge(priority, job.tokens)
        return item

    def put_back(self, items: Iterable[Item]) -> None:
        """Return jobs that were drawn and do not go."""
        for item in items:
            job, flow = item[2], self._flow_of(item[2])
            flow.by_due.push(item, waiting=flow.jobs)
            self._enter(job, flow)
            flow.deficit += job.tokens
            self._entitled[job.priority] += job.tokens

    def leave(self, job: WaitingJob) -> None:
        """A job that waits here does so no more."""
        self._leave(job, self._flows[job.priority, job.tenant])

    def settle(self, job: WaitingJob, tokens: int) -> None:
        """A job that was charged for by an estimate has turned out to be so much work: the difference is made good.

        Whoever has nothing waiting any more starts anew with what comes next, as ever in these rounds. The bound of
        one batch keeps a single mistake from shutting a tenant out, and its rounds short.
        """
        difference = tokens - job.tokens
        flow = self._flows.get((job.priority, job.tenant))
        if flow is not None:
            flow.deficit = max(flow.deficit - difference, min(flow.deficit, -float(self._batch_tokens)))
        if self.of_priority[job.priority] != self.jobs:
            self._charge(job.priority, difference)

    def waiting(self) -> list[WaitingJob]:
        """All jobs that wait, in no order."""
        return [job for flow in self._flows.values() for job in flow.by_due]

    # -- tenants --------------------------------------------------------------------------------------------

    def _flow_of(self, job: WaitingJob) -> _Flow:
        """The flow a job belongs to, made where it is missing."""
        key = (job.priority, job.tenant)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key)
            self._rounds[job.priority].append(flow)
        return flow

    def _next_flow(self, rounds: deque[_Flow]) -> _Flow:
        """The flow whose turn it is. Those that are empty leave the round."""
        while True:
            flow = rounds[0]
            head = flow.by_due.head()
            if head is None:
                del self._flows[rounds.popleft().key]
            elif len(rounds) == 1 or flow.deficit >= head[2].tokens:
                return flow
            else:
                flow.deficit += self._quantum
                rounds.rotate(-1)

    # -- priorities -----------------------------------------------------------------------------------------

    def _next_priority(self) -> int | None:
        """One that has not had its share, else the one with the most urgent job."""
        if self.jobs in self.of_priority:  # as nearly always: all that wait are of one priority, or none waits
            return self.of_priority.index(self.jobs) if self.jobs else None
        waiting = [priority for priority in range(3) if self.of_priority[priority]]
        heads = [(self._most_urgent_of(priority), priority) for priority in waiting]
        for head, priority in heads:
            if self._entitled[priority] >= head[2].tokens:
                return priority
        return min(heads)[1]

    def _most_urgent_of(self, priority: int) -> Item:
        return min(head for flow in self._rounds[priority] if (head := flow.by_due.head()) is not None)

    def _charge(self, priority: int, tokens: int) -> None:
        """Work was done for a priority: each that waits is entitled to its share of as much."""
        if self.of_priority[priority] == self.jobs:  # nobody else waits
            self._entitled[:] = _NOTHING
            return
        whole = sum(self._shares)
        for other in range(3):
            grown = self._entitled[other] + tokens * self._shares[other] / whole
            self._entitled[other] = max(0.0, min(grown, self._batch_tokens)) if self.of_priority[other] else 0.0
        self._entitled[priority] = max(0.0, self._entitled[priority] - tokens)

    # -- how many -------------------------------------------------------------------------------------------

    def _enter(self, job: WaitingJob, flow: _Flow) -> None:
        job.waiting = True
        self._count(job, flow, 1)

    def _leave(self, job: WaitingJob, flow: _Flow) -> None:
        job.waiting = False
        self._count(job, flow, -1)

    def _count(self, job: WaitingJob, flow: _Flow, sign: Literal[1, -1]) -> None:
        self.jobs += sign
        self.tokens += sign * job.tokens
        self.bytes += sign * job.bytes
        self.of_priority[job.priority] += sign
        flow.jobs += sign
