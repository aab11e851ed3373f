"""Replicas that are not there: they start, compute for a while, are paid for, and go."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace_cluster.simulation.trace import PoolTrace

__all__ = ["Flight", "Replica", "SimulatedPool"]


@dataclass(slots=True, eq=False)
class Flight:
    """A batch on its way: whatever was sent to one replica with one call."""

    jobs: list[int]
    """Those that have not come back."""
    replica: Replica
    ticket: object
    """Whatever the policy knows it again by."""
    run_s: float = 0.0
    sent_s: float = 0.0


@dataclass(slots=True, eq=False)
class Replica:
    """One replica: `lanes` compute side by side, each one thing after the other."""

    name: str
    pool: SimulatedPool
    begun_s: float
    """Since when it is paid for."""
    free_at_s: list[float]
    """A heap: for each lane, until when it is taken."""
    flights: dict[Flight, None] = field(default_factory=dict)
    """What it has, in the order it came: a set would not come out the same each time."""
    up: bool = False
    gone: bool = False
    """Whether nobody may send it anything any more."""

    def run(self, now_s: float, seconds: float) -> float:
        """Have it compute for so long, behind what it has already; returns when it is done."""
        done_s = max(now_s, self.free_at_s[0]) + seconds
        heapq.heapreplace(self.free_at_s, done_s)
        return done_s


class SimulatedPool:
    """The replicas of one model on one kind of hardware, and their bill.

    Args:
        model: whose.
        spec: what the trace says of them.
        lanes: how many things a replica computes at once.
        replicas: how many there are from the beginning.
    """

    def __init__(self, model: str, spec: PoolTrace, *, lanes: int, replicas: int) -> None:
        self.spec = spec
        self.name = f"{model}@{spec.name}"
        self.target = replicas
        self.bill: list[tuple[float, int]] = []
        """When how many more, or fewer, were paid for."""
        self.held_s = 0.0
        self._lanes = lanes
        self._replicas: dict[str, Replica] = {}
        self._made = 0
        for replica in self._start(replicas, 0.0):
            self.up(replica)

    @property
    def lanes(self) -> int:
        """How many things one replica computes at once."""
        return self._lanes

    @property
    def running(self) -> list[Replica]:
        """Those that take work."""
        return [replica for replica in self._replicas.values() if replica.up and not replica.gone]

    def _start(self, count: int, now_s: float) -> list[Replica]:
        started = []
        for _ in range(count):
            self._made += 1
            name = f"{self.spec.name}/{self._made:06d}"
            started.append(Replica(name, self, now_s, [0.0] * self._lanes))
            self._replicas[name] = started[-1]
        if count:
            self.bill.append((now_s, count))
        return started

    def up(self, replica: Replica) -> bool:
        """It is ready. False if it is not wanted any more."""
        replica.up = not replica.gone
        return replica.up

    def scale(self, target: int, now_s: float) -> list[Replica]:
        """So many are wanted from now on; returns those that begin to start. Who goes finishes what he has."""
        self.target = max(self.spec.min_replicas, min(target, self.spec.max_replicas))
        staying = [replica for replica in self._replicas.values() if not replica.gone]
        surplus = len(staying) - self.target
        if surplus <= 0:
            return self._start(-surplus, now_s)
        # As Serve does: first those that are not up, then the youngest.
        for replica in sorted(staying, key=lambda replica: (replica.up, -replica.begun_s))[:surplus]:
            replica.gone = True
            self.settle(replica, now_s)
        return []

    def settle(self, replica: Replica, now_s: float) -> None:
        """Stop paying for one that is to go and has nothing left to do."""
        if replica.gone and not replica.flights and self._replicas.pop(replica.name, None) is not None:
            self.held_s += (now_s - replica.begun_s) * self._lanes
            self.bill.append((now_s, -1))

    def lose(self, share: float, now_s: float) -> list[Replica]:
        """This part of those that run dies, the oldest first: what was started together tends to share nodes."""
        dying = self.running[: math.ceil(share * len(self.running))]
        for replica in dying:
            replica.gone = True
        return dying

    def close(self, now_s: float) -> None:
        """The run is over: the bill is made up."""
        for replica in list(self._replicas.values()):
            replica.gone = True
            replica.flights.clear()
            self.settle(replica, max(now_s, replica.begun_s))

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())
