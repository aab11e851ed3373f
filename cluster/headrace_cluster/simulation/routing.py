"""Who sends which jobs where, in the simulator: headrace's own classes.

`HeadraceRouting` is to `Scheduler` and `entries_to_read` what `ModelRouter` and `Dispatcher` are to them in production,
without Redis and Ray. Nothing is decided here that is decided there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from headrace_cluster.router.flight import Race
from headrace_cluster.scheduling.batch_former import WaitingJob
from headrace_cluster.scheduling.credit import CreditPolicy, entries_to_read
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_cluster.simulation.jobs import Jobs
from headrace_cluster.simulation.pools import Replica
from headrace_cluster.slots.ledger import Slot

__all__ = ["HeadraceRouting", "Routing"]

_PARTS: Final = 8
"""Lanes of one priority."""
_BYTES_PER_TOKEN: Final = 4


class Routing(Protocol):
    """What the event loop asks of a policy. Jobs are numbers; a ticket is whatever the policy knows a batch by."""

    @property
    def waiting(self) -> int:
        """Jobs that have come and are neither with a replica nor ended."""

    def arrived(self, job: int) -> bool:
        """It has been submitted. False if there can be no new batch because of it."""

    def replicas_changed(self, replicas: Iterable[Replica]) -> None:
        """These take work now."""

    def expired(self, now_s: float) -> Sequence[int]:
        """Jobs that end here, because their deadline has passed."""

    def look(self, now_s: float) -> bool:
        """A quarter of a second has passed. True if there may be something to send because of it."""

    def next_batch(self, now_s: float) -> tuple[list[int], str, Any] | None:
        """What to send, to which replica, and the ticket."""

    def wait_s(self, now_s: float) -> float | None:
        """How long until there may be a batch without anything else having happened."""

    def came_back(self, ticket: Any, jobs: Sequence[int], now_s: float, run_s: float, *, left: int) -> Sequence[int]:
        """A replica answered these jobs of a batch, and has so many of it still. Returns those that end by it."""

    def lost(self, ticket: Any, jobs: Sequence[int], now_s: float) -> Sequence[int]:
        """Their replica died. Returns those that are given up."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A batch that is out: once, or twice if it was hedged."""

    slot: Slot
    jobs: list[WaitingJob]
    race: Race


class HeadraceRouting:
    """Lanes as Redis holds them, credit, and the scheduler of one router.

    Args:
        jobs: what is to be routed.
        policy: of the model's router.
        credit: how much it may read.
    """

    def __init__(self, jobs: Jobs, policy: RoutingPolicy, credit: CreditPolicy) -> None:
        self.scheduler = Scheduler(
            policy.forming,
            batches_per_replica=policy.batches_per_replica,
            jobs_per_replica=policy.jobs_per_replica,
            lone_failures=policy.lone_failures,
            pools=policy.pools,
        )
        self.hedged = 0
        """Batches that were sent a second time, because the first was late."""
        self._waiting = 0
        self._jobs = jobs
        self._credit = credit
        self._by_job = policy.jobs_per_replica > 0
        self._lanes: tuple[tuple[deque[int], ...], ...] = tuple(
            tuple(deque[int]() for _ in range(_PARTS)) for _ in range(3)
        )
        self._live = [[0] * _PARTS for _ in range(3)]
        """Jobs of each lane that have not ended: what its stream's length is in Redis."""
        self._part_of: dict[int, int] = {}
        self._live_of_tenant = [0] * len(jobs.tenants)
        self._in_lanes = 0
        self._active = [1, 1, 1]
        """Of each priority, how many lanes had jobs at the last read."""
        self._held_bytes = 0
        self._mean_bytes = 1024.0
        self._full = [False, False, False]
        """Of which priorities there is no credit for more, until a replica or a job moves."""
        self._out: dict[int, _Ticket] = {}

    @property
    def waiting(self) -> int:
        """In lanes, and in the router's hands."""
        return self._waiting

    # -- in -----------------------------------------------------------------------------------------------

    def arrived(self, job: int) -> bool:
        """Into the lane of its tenant; one that comes anew gets the emptiest, and keeps it while it has live jobs."""
        priority, tenant = self._jobs.priority[job], self._jobs.tenant[job]
        part = self._part_of.get(tenant)
        if part is None:
            live = self._live[priority]
            part = self._part_of[tenant] = live.index(min(live))
        self._live[priority][part] += 1
        self._live_of_tenant[tenant] += 1
        self._lanes[priority][part].append(job)
        self._in_lanes += 1
        self._waiting += 1
        return not self._full[priority]

    def _read_all(self, now_s: float) -> None:
        """As much as there is credit for."""
        for priority in range(3):
            while self._in_lanes and not self._full[priority] and self._read(priority, now_s):
                pass

    def _read(self, priority: int, now_s: float) -> bool:
        """One read of a priority's lanes. False if it brought nothing."""
        slots = self.scheduler.slots
        count = entries_to_read(
            self._credit,
            free_slots=slots.free(now_s) if self.scheduler.breaker.closed else 0,
            replicas=slots.ahead,
            waiting=self.scheduler.former.waiting_of(priority),
            active=self._active[priority],
            held_bytes=self._held_bytes,
            mean_bytes=self._mean_bytes,
        )
        self._full[priority] = count == 0
        self.scheduler.choice.more_waits = slots.replicas > 0 and any(self._full)
        lanes = [lane for lane in self._lanes[priority] if lane]
        self._active[priority] = max(1, len(lanes))
        taken = [lane.popleft() for lane in lanes for _ in range(min(count, len(lane)))]
        self._take(taken, now_s)
        return bool(taken)

    def _take(self, taken: Sequence[int], now_s: float) -> None:
        self._in_lanes -= len(taken)
        self.scheduler.former.note_arrivals(len(taken), now_s)
        for number in taken:
            job = self._held(number)
            if job.deadline_s is not None:
                self.scheduler.costs.note_slack(job.deadline_s - job.submitted_s)
            self.scheduler.former.add(job)

    def _held(self, number: int) -> WaitingJob:
        jobs = self._jobs
        size = jobs.tokens[number] * _BYTES_PER_TOKEN
        self._held_bytes += size
        self._mean_bytes += 0.01 * (size - self._mean_bytes)
        return WaitingJob(
            key=number,
            tokens=jobs.tokens[number],
            bytes=size,
            priority=jobs.priority[number],
            submitted_s=jobs.offset_s[number],
            deadline_s=jobs.deadline_s[number],
            tenant=jobs.tenants[jobs.tenant[number]],
        )

    def _let_go(self, jobs: Iterable[WaitingJob]) -> list[int]:
        """They have ended."""
        gone = []
        for job in jobs:
            self._held_bytes -= job.bytes
            self._leave_lane(job.key)
            gone.append(job.key)
        self._full = [False, False, False]
        return gone

    def _leave_lane(self, job: int) -> None:
        tenant = self._jobs.tenant[job]
        self._live[self._jobs.priority[job]][self._part_of[tenant]] -= 1
        self._live_of_tenant[tenant] -= 1
        if not self._live_of_tenant[tenant]:
            del self._part_of[tenant]

    # -- out ----------------------------------------------------------------------------------------------

    def replicas_changed(self, replicas: Iterable[Replica]) -> None:
        """As Serve tells routers."""
        self.scheduler.slots.update(replica.name for replica in replicas)
        self._full = [False, False, False]

    def expired(self, now_s: float) -> Sequence[int]:
        """Those in the router's hands, and in what it reads in their place."""
        gone: list[int] = []
        self._read_all(now_s)
        while late := self.scheduler.expired(now_s):
            gone += self._let_go(late)
            self._read_all(now_s)
        self._waiting -= len(gone)
        return gone

    def look(self, now_s: float) -> bool:
        """See who is late."""
        return bool(self.scheduler.look_for_stragglers(now_s))

    def next_batch(self, now_s: float) -> tuple[list[int], str, Any] | None:
        """What is late goes out again first; then what there is credit for is read, and the scheduler chooses."""
        if (hedge := self.scheduler.next_hedge(now_s)) is not None:
            late, slot = hedge
            race = self._out[late.slot.number].race
            self.hedged += 1
            return self._sent(race.left, slot, race)
        self._read_all(now_s)
        chosen = self.scheduler.next_batch(now_s)
        if chosen is None:
            return None
        jobs, slot = chosen
        self._full = [False, False, False]
        self._waiting -= len(jobs)
        return self._sent(jobs, slot, Race(jobs))

    def _sent(self, jobs: list[WaitingJob], slot: Slot, race: Race) -> tuple[list[int], str, _Ticket]:
        ticket = self._out[slot.number] = _Ticket(slot, jobs, race)
        race.out += 1
        return [job.key for job in jobs], slot.replica, ticket

    def wait_s(self, now_s: float) -> float | None:
        """As the scheduler says."""
        return self.scheduler.wait_s(now_s)

    # -- back ---------------------------------------------------------------------------------------------

    def came_back(self, ticket: Any, jobs: Sequence[int], now_s: float, run_s: float, *, left: int) -> Sequence[int]:
        """Give the slot back, and learn; where a batch was hedged, the first answer counts."""
        slot = ticket.slot
        if self._by_job:
            self.scheduler.ended(len(jobs), slot, left=left)
        else:
            self.scheduler.came_back(slot, now_s)
        longest = max(self._jobs.tokens[job] for job in jobs)
        self.scheduler.learn(slot, len(jobs), self._jobs.real_tokens(jobs), run_s, longest=longest)
        if not left:
            self._over(ticket)
        answered = set(jobs)
        return self._let_go([job for job in ticket.jobs if job.key in answered and ticket.race.settle(job)])

    def _over(self, ticket: _Ticket) -> None:
        del self._out[ticket.slot.number]
        ticket.race.out -= 1

    def lost(self, ticket: Any, jobs: Sequence[int], now_s: float) -> Sequence[int]:
        """Have it found out which job it was, as if one were to blame: nobody tells a router that a node went."""
        self._over(ticket)
        self._full = [False, False, False]
        left = ticket.race.left
        if ticket.race.out or not left:
            self.scheduler.given_up(ticket.slot, now_s, died=True)
            return ()
        convicted = self.scheduler.failed(left, ticket.slot, now_s, died=True, computed=self._by_job)
        self._waiting += len(left) - (convicted is not None)
        return () if convicted is None else self._let_go([convicted])
