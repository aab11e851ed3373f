"""The fault plan: what happens when, and to whom, all of it drawn from a seed.

The same seed, duration and numbers give the same plan, so a run that failed can be run again. What the
processes make of it is theirs: schedulers are not replayed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["Fault", "FaultKind", "Targets", "describe", "make_plan", "spread"]


class FaultKind(StrEnum):
    """Everything that the harness can do to a cluster."""

    KILL_REDIS = "kill_redis"
    """SIGKILL, then a start on the same data."""
    TEAR_REDIS = "tear_redis"
    """The same, with half a command behind the append-only file: a write that was torn by the crash."""
    STOP_REDIS = "stop_redis"
    """SIGSTOP, later SIGCONT."""
    KILL_ROUTER = "kill_router"
    KILL_REPLICA = "kill_replica"
    KILL_PRODUCER = "kill_producer"
    KILL_NODE = "kill_node"
    """A Ray node and every actor on it, at one moment; another takes its place."""
    STOP_ROUTER = "stop_router"
    STOP_REPLICA = "stop_replica"
    STOP_PRODUCER = "stop_producer"
    END_ROUTER = "end_router"
    """SIGTERM: an orderly end, and a new one."""
    END_REPLICA = "end_replica"
    DROP_REPLY = "drop_reply"
    """The server executes a command, and nobody is told."""
    CUT = "cut"
    """All connections of one kind of process are closed."""
    HOLD = "hold"
    """Nothing passes between one kind of process and Redis, and nobody is told."""
    HALF_OPEN = "half_open"
    """Commands pass and replies do not."""
    DELAY = "delay"
    """Every reply comes late."""
    PARTITION = "partition"
    """The network between one kind of process and Redis loses every packet; only where each is on an `Island`."""
    FLUSH_SCRIPTS = "flush_scripts"
    KILL_CLIENTS = "kill_clients"
    """CLIENT KILL of every connection."""
    FILL_MEMORY = "fill_memory"
    """Redis refuses writes, as at maxmemory."""


LASTS_S: Final[Mapping[FaultKind, tuple[float, float]]] = {
    FaultKind.KILL_REDIS: (0.05, 0.6),
    FaultKind.TEAR_REDIS: (0.05, 0.3),
    FaultKind.STOP_REDIS: (0.3, 1.5),
    FaultKind.STOP_ROUTER: (4.0, 5.5),
    FaultKind.STOP_REPLICA: (0.5, 5.0),
    FaultKind.STOP_PRODUCER: (0.5, 2.0),
    FaultKind.HOLD: (0.3, 2.0),
    FaultKind.HALF_OPEN: (0.3, 2.0),
    FaultKind.DELAY: (0.5, 2.0),
    FaultKind.PARTITION: (0.5, 5.0),
    FaultKind.FILL_MEMORY: (0.2, 1.0),
}
"""How long the faults last that last; a router's stop is longer than its lease."""

_DELAYED_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done: when, since the faults began; to whom; for how long."""

    at_s: float
    kind: FaultKind
    target: str
    lasts_s: float = 0.0
    detail: str = ""

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        return f"{self.at_s:8.3f} s  {self.kind:<14} {self.target:<12} {self.lasts_s:.3f} s {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class Targets:
    """How many processes of each kind there are to be hit, and which commands' replies can be dropped."""

    producers: int = 2
    routers: int = 3
    replicas: int = 3
    nodes: int = 1
    commands: tuple[str, ...] = ("submit", "complete", "XREADGROUP")


_LINKS: Final = ("producers", "routers", "replicas")
_LINK_OF: Final = {
    "submit": "producers",
    "cancel": "producers",
    "XREAD": "producers",
    "complete": "replicas",
} | dict.fromkeys(("start", "chunk"), "replicas")
"""Which processes send a command; those that are not named are routers'."""


def make_plan(
    seed: int, duration_s: float, counts: Mapping[FaultKind, int], targets: Targets | None = None
) -> list[Fault]:
    """The faults of a scenario, in the order of their times.

    Each kind is spread evenly over the duration, with jitter, so that all kinds meet all others; every fault
    is over by `duration_s`.
    """
    random_, targets = random.Random(f"{seed}/{duration_s}"), targets or Targets()
    faults = [
        _fault(random_, kind, (n + random_.random()) / count * duration_s, duration_s, targets)
        for kind, count in counts.items()
        for n in range(count)
    ]
    return sorted(faults, key=lambda fault: (fault.at_s, fault.kind, fault.target))


def _fault(random_: random.Random, kind: FaultKind, at_s: float, duration_s: float, targets: Targets) -> Fault:
    shortest_s, longest_s = LASTS_S.get(kind, (0.0, 0.0))
    lasts_s = round(random_.uniform(shortest_s, longest_s), 3)
    target, detail = _target(random_, kind, targets)
    return Fault(round(max(0.0, min(at_s, duration_s - lasts_s)), 3), kind, target, lasts_s, detail)


def _target(random_: random.Random, kind: FaultKind, targets: Targets) -> tuple[str, str]:
    if kind is FaultKind.DROP_REPLY:
        command = random_.choice(targets.commands)
        return _LINK_OF.get(command, "routers"), command
    if kind in (FaultKind.CUT, FaultKind.HOLD, FaultKind.HALF_OPEN, FaultKind.DELAY, FaultKind.PARTITION):
        return random_.choice(_LINKS), str(_DELAYED_S) if kind is FaultKind.DELAY else ""
    return _process(random_, kind.rpartition("_")[2], targets), ""


def _process(random_: random.Random, role: str, targets: Targets) -> str:
    processes: Mapping[str, int] = {
        "producer": targets.producers,
        "router": targets.routers,
        "replica": targets.replicas,
        "node": targets.nodes,
    }
    return f"{role}-{random_.randrange(processes[role])}" if role in processes else "redis"


def spread(counts: Mapping[FaultKind, int], factor: float) -> Mapping[FaultKind, int]:
    """The same mix of faults for a duration `factor` times as long, at least one of each."""
    return {kind: max(1, round(count * factor)) for kind, count in counts.items()}


def describe(plan: Sequence[Fault]) -> str:
    """The plan, a line a fault."""
    return "\n".join(map(str, plan))
