"""One scenario: a cluster, the work and the faults it gets, and what became of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaos.checker import Rules, Violation, check
from chaos.cluster import Cluster, Topology
from chaos.faults import Tormentor
from chaos.history import read_histories
from chaos.observation import final_state, sample_audit, sample_memory
from chaos.plan import FaultKind, Targets, make_plan, spread
from chaos.record import FinalState, Record
from chaos.serve_cluster import ServeCluster
from headrace.tasks import end_task

__all__ = ["Outcome", "Scenario", "run_scenario"]

_SAMPLE_EVERY_S: Final = 0.2
_MEMORY_EVERY: Final = 10
"""Every so many samples of the audit one of the memory."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is run, for how long, and what is done to it. Faults are numbered for `faults_s`."""

    name: str
    topology: Topology = field(default_factory=Topology)
    faults: Mapping[FaultKind, int] = field(default_factory=dict)
    baseline_s: float = 1.0
    faults_s: float = 10.0
    calm_s: float = 1.0
    """How long after the faults work goes on: longer, up to what the rules allow, if throughput is not back yet."""
    drain_s: float = 60.0
    """How long the drain may take."""
    settle_s: float = 0.0
    """How long to wait after the drain until what is kept for a while is gone."""
    commands: tuple[str, ...] = ("submit", "complete", "XREADGROUP")
    rules: Rules = field(default_factory=Rules)
    served: bool = False
    """Whether the real Serve application is run, and not routers and replicas as plain processes."""

    @property
    def targets(self) -> Targets:
        """What there is to be hit."""
        topology = self.topology
        return Targets(len(topology.producers), topology.routers, topology.replicas, topology.nodes, self.commands)


@dataclass(slots=True)
class Outcome:
    """What became of a scenario."""

    scenario: Scenario
    seed: int
    duration_s: float
    record: Record
    done: Counter[FaultKind]
    dropped_replies: int
    violations: list[Violation]


async def run_scenario(
    scenario: Scenario, *, seed: int, factor: float = 1.0, broken: str = "", keep: Path | None = None
) -> Outcome:
    """Run it, and have it judged.

    Args:
        scenario: what to run.
        seed: of the faults and the work.
        factor: how many times as long, and with as many more faults.
        broken: the sabotage to run with.
        keep: where histories and logs are to be kept; None throws them away.
    """
    directory = keep or Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    started_s = time.monotonic()
    try:
        kind = ServeCluster if scenario.served else Cluster
        async with kind(directory, scenario.topology, seed=seed, broken=broken) as cluster:
            run = _Run(scenario, cluster, seed, factor)
            final, unfinished = await run.play()
            dropped = cluster.dropped_replies
        record = Record.of(read_histories(directory / "histories"), final)
        violations = unfinished + check(record, scenario.rules)
        duration_s = time.monotonic() - started_s
        return Outcome(scenario, seed, duration_s, record, run.tormentor.done, dropped, violations)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)


class _Run:
    def __init__(self, scenario: Scenario, cluster: Cluster, seed: int, factor: float) -> None:
        self._scenario = scenario
        self._cluster = cluster
        self._factor = factor
        self.tormentor = Tormentor(cluster)
        faults_s = scenario.faults_s * factor
        self._plan = make_plan(seed, faults_s, spread(scenario.faults, factor), scenario.targets)

        self._ended: list[tuple[float, int]] = []
        self._baseline_s = self._faults_s = 0.0

    def _phase(self, name: str) -> None:
        self._cluster.history.note("phase", name=name)

    async def play(self) -> tuple[FinalState, list[Violation]]:
        scenario, cluster = self._scenario, self._cluster
        watching = asyncio.create_task(self._watch())
        try:
            await sample_memory(cluster)
            self._phase("start")
            await cluster.start_producers()
            await asyncio.sleep(_WARM_UP_S)
            self._phase("baseline")
            self._baseline_s = time.monotonic()
            await asyncio.sleep(scenario.baseline_s)
            self._phase("faults")
            self._faults_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.tormentor.follow(self._plan))
                group.create_task(asyncio.sleep(scenario.faults_s * self._factor))
            self._phase("calm")
            await self._calm()
            self._phase("drain")
            unfinished = await self._drain()
            await asyncio.sleep(scenario.settle_s)
            await sample_memory(cluster)
        finally:
            await end_task(watching)
        await sample_audit(cluster)
        return await final_state(cluster.redis), unfinished

    async def _calm(self) -> None:
        rules = self._scenario.rules
        started_s = time.monotonic()
        await asyncio.sleep(self._scenario.calm_s)
        wanted = rules.throughput_ratio * self._rate(self._baseline_s, self._faults_s)
        while time.monotonic() < started_s + rules.throughput_within_s:
            now_s = time.monotonic()
            if self._rate(max(started_s, now_s - _RATE_OVER_S), now_s) >= wanted:
                return
            await asyncio.sleep(_SAMPLE_EVERY_S)

    def _rate(self, start_s: float, end_s: float) -> float:
        """Jobs ended a second, as the samples of the audit tell."""
        samples = [sample for sample in self._ended if start_s <= sample[0] <= end_s]
        if len(samples) < 2:
            return 0.0
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        return (last - first) / (last_s - first_s)

    async def _drain(self) -> list[Violation]:
        try:
            await self._cluster.end_producers(within_s=self._scenario.drain_s)
        except TimeoutError:
            return [Violation("I1", f"producers still wait for answers {self._scenario.drain_s:.0f} s after the end")]
        return []

    async def _watch(self) -> None:
        sample = 0
        while True:
            audit = await sample_audit(self._cluster)
            if audit:
                self._ended.append((time.monotonic(), audit["submitted"] - audit["live"]))
            if sample % _MEMORY_EVERY == 0:
                await sample_memory(self._cluster)
            sample += 1
            await asyncio.sleep(_SAMPLE_EVERY_S)


_WARM_UP_S: Final = 0.5
_RATE_OVER_S: Final = 2.5
