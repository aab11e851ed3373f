"""`headrace bench transport`: jobs a second with an engine that does nothing, against the floor and the peers.

One producer, one router, one replica, and every result read back by the producer. The floor and headrace run
in turn on one server, and what counts is the ratio within each turn.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from headrace import AsyncClient, Job
from headrace_cluster.bench.floor import measure_floor
from headrace_cluster.bench.transport_peers import PeerLoad, measure_peers
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.local import LocalService
from headrace_workers.engines.echo import EchoEngine

__all__ = ["TransportPlan", "TransportReport", "run_transport"]

_IN_FLIGHT: Final = 4096


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """How much to measure."""

    jobs: int = 20_000
    payload_bytes: int = 200
    rounds: int = 5
    lone_jobs: int = 300
    batch1_jobs: int = 2_000
    peer_jobs: int = 2_000
    peer_rounds: int = 3
    peers: Path | None = None
    """A folder with a virtual environment for each peer, as `make peers` makes it."""

    @classmethod
    def quick(cls, peers: Path | None) -> TransportPlan:
        """A short look."""
        return cls(jobs=4_000, rounds=1, lone_jobs=100, batch1_jobs=200, peer_jobs=500, peer_rounds=1, peers=peers)

    @property
    def peer_load(self) -> PeerLoad:
        """What each peer is given."""
        return PeerLoad(self.peer_jobs, self.jobs, self.payload_bytes, self.peer_rounds)


@dataclass(slots=True)
class TransportReport:
    """What came out; times in milliseconds, costs in microseconds of CPU."""

    jobs_per_s: float = 0.0
    floor_jobs_per_s: float = 0.0
    ratio_to_floor: float = 0.0
    peers_jobs_per_s: dict[str, float] = field(default_factory=dict)
    peers_ratio_to_floor: dict[str, float] = field(default_factory=dict)
    ratio_to_best_peer: float | None = None
    always_jobs_per_s: float = 0.0
    always_ratio_to_floor: float = 0.0
    batch1_jobs_per_s: float = 0.0
    lone_p50_ms: float = 0.0
    lone_p99_ms: float = 0.0
    lone_over_inprocess_p50_ms: float = 0.0
    router_cpu_us_per_job: float = 0.0
    mean_batch: float = 0.0
    lost: int = 0
    doubled: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields, rounded to what they are good for."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def run_transport(plan: TransportPlan, progress: Callable[[str], None]) -> TransportReport:
    """Measure. `progress` is told what is being done."""
    report = TransportReport()
    progress("starting the service")
    with LocalService(_config()) as service:
        bench = _Bench(service, plan, report)
        progress("lone jobs")
        asyncio.run(bench.lone())
        progress("batches of one")
        report.batch1_jobs_per_s = asyncio.run(bench.rate("one", plan.batch1_jobs))
        progress("batches of 64")
        report.router_cpu_us_per_job = bench.router_cost()
        bench.against_floor(progress)
        asyncio.run(bench.audit())
    _against_peers(plan, report, progress)
    return report


def _against_peers(plan: TransportPlan, report: TransportReport, progress: Callable[[str], None]) -> None:
    """By way of the floor, which is measured beside each of them too: the machine's speed changes meanwhile."""
    if plan.peers is None:
        return
    measured = measure_peers(plan.peers, plan.peer_load, progress)
    report.peers_jobs_per_s = {name: round(peer.jobs_per_s, 1) for name, peer in measured.items()}
    report.peers_ratio_to_floor = {name: peer.ratio_to_floor for name, peer in measured.items()}
    if measured:
        report.ratio_to_best_peer = report.ratio_to_floor / max(report.peers_ratio_to_floor.values())


def _config() -> ServiceConfig:
    """The echo engine three times: batches as large as a script call carries twice, of 64, and of one."""
    return load_config(
        {
            "models": {
                "echo": {"engine": {"kind": "echo"}, "batching": {"max_jobs": 256}},
                "sixtyfour": {"engine": {"kind": "echo"}, "batching": {"max_jobs": 64}},
                "one": {"engine": {"kind": "echo"}, "batching": {"max_jobs": 1, "linger_ms": 0}},
            }
        }
    )


class _Bench:
    """The measurements of one service."""

    def __init__(self, service: LocalService, plan: TransportPlan, report: TransportReport) -> None:
        self._service = service
        self._plan = plan
        self._report = report

    def _jobs(self, model: str, count: int) -> Iterator[Job]:
        payload = "x" * self._plan.payload_bytes
        return (Job(model=model, input=payload) for _ in range(count))

    async def rate(self, model: str, count: int) -> float:
        """Jobs a second through the model, results included."""
        async with AsyncClient(self._service.url) as client:
            await client.run(next(self._jobs(model, 1)), timeout_s=30)
            started, received = time.perf_counter(), 0
            async for result in client.map(self._jobs(model, count), in_flight=_IN_FLIGHT, ordered=False):
                received += result.ok
            elapsed_s = time.perf_counter() - started
        if received != count:
            raise RuntimeError(f"{count - received} of {count} jobs failed")
        return count / elapsed_s

    async def lone(self) -> None:
        """One job at a time, and the same engine called in this process."""
        times_ms, engine, inprocess_ms = [], EchoEngine(), []
        async with AsyncClient(self._service.url) as client:
            for _ in range(self._plan.lone_jobs + 20):
                job = next(self._jobs("echo", 1))
                started = time.perf_counter()
                (await client.run(job, timeout_s=30)).unwrap()
                times_ms.append((time.perf_counter() - started) * 1000)
        for _ in range(self._plan.lone_jobs):
            started = time.perf_counter()
            engine.run([item for item in engine.prepare([(job.input, {})]) if not isinstance(item, Exception)])
            inprocess_ms.append((time.perf_counter() - started) * 1000)
        ranked = sorted(times_ms[20:])
        self._report.lone_p50_ms = statistics.median(ranked)
        self._report.lone_p99_ms = ranked[int(len(ranked) * 0.99)]
        self._report.lone_over_inprocess_p50_ms = self._report.lone_p50_ms - statistics.median(inprocess_ms)

    def router_cost(self) -> float:
        """The router's CPU for one job, in microseconds, at batches of 64."""
        before = self._service.counts()["sixtyfour"]
        asyncio.run(self.rate("sixtyfour", self._plan.jobs))
        after = self._service.counts()["sixtyfour"]
        return float(
            (after["process_cpu_s"] - before["process_cpu_s"]) / (after["answered"] - before["answered"]) * 1e6
        )

    def against_floor(self, progress: Callable[[str], None]) -> None:
        """Floor and headrace in turn, then once more with every write on disk before it is acknowledged."""
        plan, report = self._plan, self._report
        before = self._service.counts()["echo"]
        pairs = []
        for n in range(plan.rounds):
            progress(f"round {n + 1} of {plan.rounds}")
            pairs.append(self._pair())
        after = self._service.counts()["echo"]
        report.mean_batch = (after["dispatched"] - before["dispatched"]) / (after["batches"] - before["batches"])
        report.floor_jobs_per_s = statistics.median(floor for floor, _ in pairs)
        report.jobs_per_s = statistics.median(ours for _, ours in pairs)
        report.ratio_to_floor = statistics.median(ours / floor for floor, ours in pairs)
        progress("AOF always")
        with redis.Redis.from_url(self._service.url) as admin:
            admin.config_set("appendfsync", "always")
            floor, report.always_jobs_per_s = self._pair()
            admin.config_set("appendfsync", "everysec")
        report.always_ratio_to_floor = report.always_jobs_per_s / floor

    def _pair(self) -> tuple[float, float]:
        plan = self._plan
        floor = measure_floor(self._service.url, jobs=plan.jobs, payload_bytes=plan.payload_bytes)
        return floor, asyncio.run(self.rate("echo", plan.jobs))

    async def audit(self) -> None:
        """Nothing lost, nothing doubled."""
        async with AsyncClient(self._service.url) as client:
            for model in self._service.config.models:
                audit = await client.audit(model)
                self._report.lost += audit.lost
                self._report.doubled += audit.doubled
