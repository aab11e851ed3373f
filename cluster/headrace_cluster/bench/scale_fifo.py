"""What forming batches is worth: texts of mixed lengths, in batches of ours and in batches of 32 as they come.

Four arms with the same int8 weights and kernels, two replicas each, behind the same router: packed and padded, ours and
first come, first served. They take turns, round by round, while the others' replicas wait.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace import AsyncClient, Job
from headrace.errors import HeadraceError
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.bench.padded_engine import PaddedEngine
from headrace_cluster.bench.throughput import mixed_texts
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import LocalService

__all__ = ["FifoPlan", "measure_fifo"]

Say = Callable[[str], None]

_FIFO: Final = {"max_jobs": 32, "max_tokens": 1 << 24}
"""As they come: the former orders jobs of one priority by their age, and nothing but their number ends a batch."""
_ARMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ours": ("packed", {}),
    "fifo": ("padded", _FIFO),
    "fifo_packed": ("packed", _FIFO),
    "ours_padded": ("padded", {"padded": True}),
}
_IN_FLIGHT: Final = 512


@dataclass(frozen=True, slots=True)
class FifoPlan:
    """How much to measure."""

    texts: int = 600
    rounds: int = 2

    @classmethod
    def quick(cls) -> FifoPlan:
        """A short look."""
        return cls(texts=128, rounds=1)


def measure_fifo(plan: FifoPlan, say: Say) -> dict[str, Any]:
    """Texts a second and latencies of the four arms.

    Returns:
        `fifo_speedup`: ours, packed, over padded batches of 32; `fifo_packed_speedup`: over packed ones;
        `fifo_padded_speedup`: ours, padded, over padded ones; `fifo_p99_ratio`: ours over padded ones; and `fifo`, the
        arms.

    Raises:
        HeadraceError: jobs failed.
    """
    model = str(packaged_encoder())
    texts = mixed_texts(model, plan.texts)
    say("fifo: starting eight replicas")
    runs: dict[str, list[_Run]] = {arm: [] for arm in _ARMS}
    with LocalService(load_config({"models": {arm: _model(model, arm) for arm in _ARMS}})) as service:
        for turn in range(plan.rounds):
            for arm in _ARMS:
                say(f"fifo, round {turn + 1} of {plan.rounds}: {arm}")
                runs[arm].append(_measured(service, arm, texts))
    rows = {arm: _median(arm, found) for arm, found in runs.items()}
    rate = {arm: row["texts_per_s"] for arm, row in rows.items()}
    return {
        "fifo_speedup": round(rate["ours"] / rate["fifo"], 3),
        "fifo_p99_ratio": round(rows["ours"]["p99_ms"] / rows["fifo"]["p99_ms"], 3),
        "fifo_packed_speedup": round(rate["ours"] / rate["fifo_packed"], 3),
        "fifo_padded_speedup": round(rate["ours_padded"] / rate["fifo"], 3),
        "fifo": list(rows.values()),
    }


def _model(model: str, arm: str) -> dict[str, Any]:
    kind, batching = _ARMS[arm]
    packed = {"kind": "encoder", "model": model, "overlong": "truncate"}
    padded = {
        "kind": "custom",
        "target": f"{PaddedEngine.__module__}:{PaddedEngine.__name__}",
        "options": {"model": model},
    }
    return {
        "engine": packed if kind == "packed" else padded,
        "pools": [{"replicas": 2, "cpus": 1}],
        "batching": batching,
    }


@dataclass(frozen=True, slots=True)
class _Run:
    texts_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch_jobs: float


def _measured(service: LocalService, arm: str, texts: Sequence[str]) -> _Run:
    before = service.counts()[arm]
    took_s, times_ms = asyncio.run(_drive(service.url, arm, texts))
    after = service.counts()[arm]
    ordered = sorted(times_ms)
    return _Run(
        texts_per_s=len(texts) / took_s,
        p50_ms=statistics.median(ordered),
        p99_ms=ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        mean_batch_jobs=(after["dispatched"] - before["dispatched"]) / max(1, after["batches"] - before["batches"]),
    )


async def _drive(url: str, model: str, texts: Sequence[str]) -> tuple[float, list[float]]:
    """Seconds for all texts, and the milliseconds from submission to answer of each."""
    handed: dict[str, float] = {}
    times_ms: list[float] = []

    def jobs() -> Iterator[Job]:
        for text in texts:
            job = Job(model=model, input=text)
            handed[job.id] = time.perf_counter()
            yield job

    async with AsyncClient(url) as client:
        (await client.run(Job(model=model, input=texts[0]), timeout_s=60)).unwrap()
        began_s = time.perf_counter()
        async for result in client.map(jobs(), in_flight=_IN_FLIGHT, ordered=False):
            result.unwrap()
            times_ms.append((time.perf_counter() - handed[result.id]) * 1000)
        took_s = time.perf_counter() - began_s
    if len(times_ms) != len(texts):
        raise HeadraceError(f"{len(texts) - len(times_ms)} of {len(texts)} texts were not answered")
    return took_s, times_ms


def _median(arm: str, runs: Sequence[_Run]) -> dict[str, Any]:
    def middle(figure: Callable[[_Run], float]) -> float:
        return round(statistics.median(map(figure, runs)), 2)

    return {
        "arm": arm,
        "texts_per_s": middle(lambda run: run.texts_per_s),
        "p50_ms": middle(lambda run: run.p50_ms),
        "p99_ms": middle(lambda run: run.p99_ms),
        "mean_batch_jobs": middle(lambda run: run.mean_batch_jobs),
    }
