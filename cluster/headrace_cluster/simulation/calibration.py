"""Is the simulator right? A service on this machine, and the simulation of the very same arrivals beside it.

The service is real: Ray, Serve, Redis. Its engine waits instead of computing, so that nothing but headrace is measured
and a busy machine disturbs little. What the simulator is told of it, it learned itself: batches take what the service's
own cost model says after the run, and what a batch takes beside its run is what lone jobs took beyond that.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

from headrace import AsyncClient, Job
from headrace.errors import HeadraceError
from headrace.keys import keys_of
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import LocalService
from headrace_cluster.router.pool_memory import cost_field
from headrace_cluster.scheduling.cost_model import CostModel
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.simulation import Simulation, simulate
from headrace_cluster.simulation.trace import parse_trace
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["CalibrationEngine", "CalibrationPlan", "CalibrationReport", "run_calibration"]

_MODEL: Final = "waits"
_POOL: Final = "cpu"
_BATCH_S: Final = 0.02
_TOKEN_S: Final = 0.001
_BYTES_PER_TOKEN: Final = 4
_MAX_JOBS: Final = 16
_TIMEOUT_S: Final = 300.0
_COST_WITHIN_S: Final = 30.0
_GOOD: Final = 0.15


class CalibrationEngine:
    """Waits for as long as a batch of such texts would take, and answers with their lengths."""

    def __init__(self) -> None:
        self.info = EngineInfo(variant="waiting", task="echo", device="cpu", load_s=0.0)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Four characters are a token."""
        return [Prepared(max(1, len(text) // _BYTES_PER_TOKEN), len(text)) for text, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Wait."""
        time.sleep(_BATCH_S + _TOKEN_S * sum(item.tokens for item in items))
        return [item.data for item in items]

    def example(self) -> tuple[Any, dict[str, Any]]:
        """Any text."""
        return "headrace", {}


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """How much to measure."""

    replicas: int = 2
    seconds: float = 30.0
    """Of steady arrivals."""
    load: float = 0.8
    """Which part of what the replicas can do arrives."""
    backlog_jobs: int = 1500
    """Jobs that come at once."""
    lone_jobs: int = 30
    median_tokens: int = 40


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was, and what the simulator says."""

    rows: tuple[tuple[str, float, float], ...]
    """A figure's name, the real one, and the simulated one."""
    batch_s: float
    """What the service's cost model learned."""
    token_s: float
    overhead_s: float

    @property
    def largest_difference(self) -> float:
        """Of all figures, as a part of the real one."""
        return max(abs(simulated / real - 1) for _, real, simulated in self.rows)

    @property
    def within(self) -> bool:
        """Whether every figure is as near as it should be: 15 per cent."""
        return self.largest_difference <= _GOOD

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        figures = {}
        for name, real, simulated in self.rows:
            figures[f"{name}_real"], figures[f"{name}_simulated"] = round(real, 4), round(simulated, 4)
        known = {"batch_s": self.batch_s, "token_s": self.token_s, "overhead_s": self.overhead_s}
        return {**figures, "largest_difference": round(self.largest_difference, 4), **known}


@dataclass(frozen=True, slots=True)
class _Measured:
    """One phase: when each job was submitted, its size, and when it was answered."""

    offset_s: list[float]
    tokens: list[int]
    end_s: list[float]

    @property
    def jobs_per_s(self) -> float:
        return len(self.end_s) / max(self.end_s)

    @property
    def p95_s(self) -> float:
        return float(np.quantile(np.array(self.end_s) - np.array(self.offset_s), 0.95))


def run_calibration(
    say: Callable[[str], None] = lambda _step: None, plan: CalibrationPlan | None = None
) -> CalibrationReport:
    """Measure a service, and simulate what it was given.

    Raises:
        HeadraceError: the service does not start, or does not answer.
    """
    plan = plan or CalibrationPlan()
    say("starting the service")
    with LocalService(load_config(_config(plan))) as service:
        say("lone jobs")
        lone = asyncio.run(
            _submit(service.url, [n * 0.25 for n in range(plan.lone_jobs)], _sizes(plan, plan.lone_jobs, 1))
        )
        say("steady arrivals")
        offsets_s = _steady(plan)
        steady = asyncio.run(_submit(service.url, offsets_s, _sizes(plan, len(offsets_s), 2)))
        say("a backlog")
        backlog = asyncio.run(_submit(service.url, [0.0] * plan.backlog_jobs, _sizes(plan, plan.backlog_jobs, 3)))
        cost = _learned(service.url)
    overhead_s = _overhead_s(lone, cost)
    say("simulating")
    rows: list[tuple[str, float, float]] = []
    for name, real in (("steady", steady), ("backlog", backlog)):
        ours = _replay(real, plan, cost, overhead_s).ours
        rows += [
            (f"{name}_jobs_per_s", real.jobs_per_s, ours.jobs_per_s),
            (f"{name}_p95_s", real.p95_s, ours.latency_p95_s),
        ]
    batch_s, _, token_s = cost.coefficients
    return CalibrationReport(tuple(rows), batch_s, token_s, overhead_s)


def _overhead_s(lone: _Measured, cost: CostModel) -> float:
    """What a batch takes beside its run: what most lone jobs took beyond that."""
    jobs = zip(lone.offset_s, lone.tokens, lone.end_s, strict=True)
    beyond_s = [end_s - offset_s - cost.predict_s(1, tokens) for offset_s, tokens, end_s in jobs]
    return max(0.0, float(np.median(beyond_s)))


def _config(plan: CalibrationPlan) -> dict[str, Any]:
    return {
        "models": {
            _MODEL: {
                "engine": {"kind": "custom", "target": f"{__name__}:{CalibrationEngine.__name__}"},
                "pools": [{"name": _POOL, "replicas": plan.replicas, "cpus": 0.1}],
                "batching": {"max_jobs": _MAX_JOBS},
            }
        },
        "router": {"cpus": 0.1},
    }


def _sizes(plan: CalibrationPlan, count: int, seed: int) -> list[int]:
    draw = np.random.default_rng(seed)
    sizes = plan.median_tokens * np.exp(0.6 * draw.standard_normal(count))
    return [max(1, int(size)) for size in sizes]


def _steady(plan: CalibrationPlan) -> list[float]:
    """Arrivals at random, so many that the replicas have to do what the plan says were all batches full."""
    mean_s = _BATCH_S / _MAX_JOBS + _TOKEN_S * float(np.mean(_sizes(plan, 10_000, 2)))
    rate_per_s = plan.load * plan.replicas / mean_s
    draw = np.random.default_rng(4)
    return sorted(draw.uniform(0.0, plan.seconds, int(rate_per_s * plan.seconds)).tolist())


async def _submit(url: str, offsets_s: Sequence[float], tokens: list[int]) -> _Measured:
    """Submit each job at its time, as its own call, and wait for all answers."""
    measured = _Measured([0.0] * len(tokens), tokens, [0.0] * len(tokens))
    async with AsyncClient(url) as client:
        (await client.run(Job(model=_MODEL, input="x" * _BYTES_PER_TOKEN), timeout_s=_TIMEOUT_S)).unwrap()
        began_s = time.perf_counter()

        async def one(number: int) -> None:
            await asyncio.sleep(began_s + offsets_s[number] - time.perf_counter())
            measured.offset_s[number] = time.perf_counter() - began_s
            job = Job(model=_MODEL, input="x" * (_BYTES_PER_TOKEN * tokens[number]))
            (await client.run(job, timeout_s=_TIMEOUT_S)).unwrap()
            measured.end_s[number] = time.perf_counter() - began_s

        await asyncio.gather(*(one(number) for number in range(len(tokens))))
    return measured


def _learned(url: str) -> CostModel:
    """What the service's router wrote of its pool, once it has."""
    deadline_s = time.monotonic() + _COST_WITHIN_S
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < deadline_s:
            state: Any = client.hget(keys_of(_MODEL).pools, cost_field(_POOL))
            if state is not None and (cost := CostModel.from_state(json.loads(state))).measured:
                return cost
            time.sleep(0.1)
    raise HeadraceError(f"the router did not say within {_COST_WITHIN_S:.0f} s what its batches cost")


def _replay(real: _Measured, plan: CalibrationPlan, cost: CostModel, overhead_s: float) -> Simulation:
    """The same arrivals, from a recorded file as anybody's would be."""
    batch_s, job_s, token_s = cost.coefficients
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrivals.jsonl"
        rows = ({"offset_s": o, "tokens": t} for o, t in zip(real.offset_s, real.tokens, strict=True))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        trace = parse_trace(
            {
                "models": 1,
                "arrivals": {"recorded": str(file)},
                "work": {"batch_s": batch_s, "job_s": job_s, "token_s": token_s},
                "batching": {"max_jobs": _MAX_JOBS},
                "pools": [{"name": _POOL, "min_replicas": plan.replicas, "max_replicas": plan.replicas}],
                "overhead_s": overhead_s,
            }
        )
        return simulate(trace, policies=POLICIES[:1], processes=1)
