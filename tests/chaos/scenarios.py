"""What the two modes run."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from chaos.checker import Rules
from chaos.cluster import Topology
from chaos.orders import Traffic
from chaos.plan import FaultKind, spread
from chaos.scenario import Scenario
from chaos.workload import Wish

__all__ = ["CI", "GENERATION", "MIXED", "PARTITIONS", "PATIENT", "SOAK", "short_mix"]

_COMMANDS: Final = ("submit", "complete", "retry", "cancel", "reap", "sweep", "XREADGROUP", "XREAD")
"""Whose replies are dropped: every script, and the reads."""

_OF_ALL: Final = {
    Wish.SLOW: 0.001,
    Wish.REFUSE: 0.01,
    Wish.RAISE: 0.0003,
    Wish.FLAKY: 0.005,
    Wish.KILL: 0.0001,
    Wish.EAT: 0.0001,
    Wish.CANCEL: 0.01,
    Wish.DEADLINE: 0.02,
}

_TWO_TENANTS: Final = (
    Traffic(mix=_OF_ALL, tenant="red"),
    Traffic(mix=_OF_ALL, tenant="blue"),
)

MIXED: Final = Scenario(
    name="mixed",
    topology=Topology(producers=_TWO_TENANTS),
    faults={
        FaultKind.KILL_REDIS: 6,
        FaultKind.TEAR_REDIS: 2,
        FaultKind.STOP_REDIS: 2,
        FaultKind.KILL_ROUTER: 15,
        FaultKind.KILL_REPLICA: 14,
        FaultKind.KILL_PRODUCER: 4,
        FaultKind.STOP_ROUTER: 2,
        FaultKind.STOP_REPLICA: 2,
        FaultKind.STOP_PRODUCER: 2,
        FaultKind.END_ROUTER: 2,
        FaultKind.END_REPLICA: 2,
        FaultKind.DROP_REPLY: 72,
        FaultKind.CUT: 6,
        FaultKind.HOLD: 2,
        FaultKind.HALF_OPEN: 2,
        FaultKind.DELAY: 2,
        FaultKind.FLUSH_SCRIPTS: 3,
        FaultKind.KILL_CLIENTS: 3,
        FaultKind.FILL_MEMORY: 2,
    },
    baseline_s=3.0,
    faults_s=30.0,
    calm_s=2.5,
    commands=_COMMANDS,
    # A router that dies forgets what it has found out about a job that kills.
    rules=Rules(max_attempts=6, deaths_each=40, lone_deaths=8, throughput_ratio=0.5),
)
"""Everything at once: faults meet each other here."""

REPLICAS: Final = Scenario(name="replicas", faults={FaultKind.KILL_REPLICA: 6}, faults_s=4.0)
"""How soon work goes on when a replica dies, and nothing else does."""

ROUTERS: Final = Scenario(name="routers", faults={FaultKind.KILL_ROUTER: 5}, faults_s=7.0)
"""How soon work goes on when a router dies."""

REDIS: Final = Scenario(
    name="redis", faults={FaultKind.KILL_REDIS: 4, FaultKind.TEAR_REDIS: 2, FaultKind.STOP_REDIS: 1}, faults_s=5.0
)

ZOMBIES: Final = Scenario(
    name="zombies",
    topology=Topology(producers=(Traffic(mix={Wish.DEADLINE: 0.2}), Traffic())),
    faults={FaultKind.STOP_ROUTER: 3, FaultKind.STOP_REPLICA: 2},
    faults_s=7.0,
    calm_s=1.0,
)
"""Routers and replicas that sleep for longer than a lease, and then go on with what others have done since."""

POISON: Final = Scenario(
    name="poison",
    topology=Topology(
        producers=(
            Traffic(
                mix={Wish.RAISE: 0.005},
                chosen={200: Wish.KILL, 600: Wish.EAT, 1000: Wish.HANG},
                jobs=1500,
                in_flight=128,
            ),
        ),
        routers=1,
        replicas=2,
        call_timeout_s=1.0,
    ),
    faults_s=4.0,
    rules=Rules(deaths_each=7, lone_deaths=2),
)
"""Jobs that raise, that eat memory, that kill and that hang, among innocent ones."""

WISHES: Final = Scenario(
    name="wishes",
    topology=Topology(
        producers=tuple(
            Traffic(mix={Wish.FLAKY: 0.05, Wish.CANCEL: 0.05, Wish.DEADLINE: 0.2}, tenant=tenant)
            for tenant in ("red", "blue")
        ),
        lane_capacity=600,
    ),
    faults_s=4.0,
    rules=Rules(max_attempts=6, lane_capacity=600),
)
"""Retries, cancellations and deadlines, before lanes that are full most of the time."""

FAIRNESS: Final = Scenario(
    name="fairness",
    topology=Topology(
        producers=(
            Traffic(jobs=10_000, in_flight=20_000, at_once=128, tenant="flood"),
            Traffic(jobs=1, at_once=1, delay_s=2.0, tenant="lone"),
        ),
        routers=1,
        replicas=1,
        batch_s=0.01,
    ),
    faults_s=2.0,
    rules=Rules(lone_job="producer-1-0.plain"),
)
"""One tenant submits ten thousand jobs, another one."""

_WORDS: Final = 120

GENERATION: Final = Scenario(
    name="generation",
    topology=Topology(
        producers=tuple(
            Traffic(
                mix={Wish.REFUSE: 0.01, Wish.CANCEL: 0.02, Wish.DEADLINE: 0.01}, tenant=tenant, in_flight=48, at_once=8
            )
            for tenant in ("red", "blue")
        ),
        words=_WORDS,
        batch_jobs=32,
        batch_s=0.004,
    ),
    faults={
        FaultKind.KILL_REPLICA: 24,
        FaultKind.KILL_ROUTER: 2,
        FaultKind.KILL_REDIS: 1,
        FaultKind.KILL_PRODUCER: 1,
        FaultKind.STOP_REPLICA: 2,
        FaultKind.STOP_ROUTER: 1,
        FaultKind.DROP_REPLY: 12,
        FaultKind.CUT: 1,
    },
    faults_s=20.0,
    calm_s=2.0,
    commands=("start", "chunk", "complete"),
    rules=Rules(max_attempts=1, words=_WORDS, replica_recovery_s=15.0, router_recovery_s=20.0),
)
"""Replicas that are killed in the middle of many streams, and all else beside it: what is heard has no gap and no
repeat, whoever said it."""

SERVE: Final = Scenario(
    name="serve",
    topology=Topology(producers=(Traffic(mix={Wish.REFUSE: 0.01}),), routers=2, replicas=2, batch_s=0.02),
    faults={
        FaultKind.KILL_REPLICA: 2,
        FaultKind.KILL_ROUTER: 2,
        FaultKind.KILL_REDIS: 1,
        FaultKind.DROP_REPLY: 6,
        FaultKind.CUT: 1,
    },
    faults_s=10.0,
    calm_s=5.0,
    served=True,
)
"""The real Serve application, its actors killed by their process ids."""

NODES: Final = replace(
    SERVE,
    name="nodes",
    topology=replace(SERVE.topology, nodes=2),
    faults={FaultKind.KILL_NODE: 2, FaultKind.DROP_REPLY: 4},
    faults_s=40.0,
    drain_s=120.0,
    rules=Rules(replica_recovery_s=60.0, router_recovery_s=60.0),
)
"""A Ray node is lost with every actor on it. How soon Ray notices is Ray's; that nothing is lost is ours."""

PATIENT: Final = Rules(replica_recovery_s=15.0, router_recovery_s=20.0)
"""For runs beside other tests: whether work goes on is asked there, and not how soon."""

PARTITIONS: Final = Scenario(
    name="partitions",
    topology=Topology(islands=True),
    faults={FaultKind.PARTITION: 6, FaultKind.KILL_ROUTER: 1, FaultKind.KILL_REPLICA: 1},
    faults_s=12.0,
    calm_s=3.0,
    rules=PATIENT,
)
"""Real networks that lose every packet for a while, some for longer than a lease. Needs network namespaces."""

CI: Final = (MIXED, REPLICAS, ROUTERS, REDIS, ZOMBIES, POISON, WISHES, FAIRNESS, GENERATION, SERVE)

_LONG: Final = replace(
    MIXED,
    name="soak",
    topology=Topology(
        producers=tuple(
            replace(traffic, mix=_OF_ALL | {Wish.KILL: 0.00002}, trims=True, in_flight=1024, at_once=128)
            for traffic in _TWO_TENANTS
        ),
        retention_s=30.0,
    ),
    faults={**MIXED.faults, FaultKind.KILL_REPLICA: 24},
    faults_s=3 * MIXED.faults_s,
    baseline_s=10.0,
    calm_s=12.0,
    drain_s=120.0,
    settle_s=40.0,
    rules=replace(MIXED.rules, throughput_ratio=0.8, memory_ratio=2.0),
)
"""The same for long, a third as dense: there is to be some work between two faults. Answers are deleted once they
are written down, and all else goes half a minute later."""

_LONG_GENERATION: Final = replace(
    GENERATION,
    faults=spread(GENERATION.faults, 10.0),
    faults_s=10.0 * GENERATION.faults_s,
    drain_s=120.0,
)
"""With 240 kills of replicas."""

SOAK: Final = (
    _LONG,
    *(_LONG_GENERATION if scenario is GENERATION else scenario for scenario in CI[1:]),
    NODES,
    PARTITIONS,
)


def short_mix(faults_s: float) -> Scenario:
    """The mixed scenario, with its faults as dense and `faults_s` long."""
    factor = faults_s / MIXED.faults_s
    faults = {kind: max(1, round(count * factor)) for kind, count in MIXED.faults.items()}
    usual = MIXED.rules
    rules = replace(
        PATIENT, max_attempts=usual.max_attempts, deaths_each=usual.deaths_each, lone_deaths=usual.lone_deaths
    )
    return replace(MIXED, name="short mix", faults=faults, faults_s=faults_s, baseline_s=0.5, calm_s=0.5, rules=rules)
