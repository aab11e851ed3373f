"""A model's speed as its users will see it: through Redis, router and replicas, with work that arrives as it does.

A search measures its finalists here, by the entry point `headrace.served`. What a model gains in process shrinks
behind a service, where tokenizing, queues and answers take their part; by how much, only the service knows.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from headrace import AsyncClient, Job
from headrace.errors import HeadraceError
from headrace_cluster.config.settings import ServiceConfig
from headrace_cluster.local import LocalService
from headrace_workers.compression.search.served import Arrival, LoadFigures, ServedFigures, poisson_trace

__all__ = ["ServedPlan", "measure_served", "synthetic_trace"]

_NAME: Final = "candidate"
_IN_FLIGHT: Final = 512
_ANSWER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """How much to measure."""

    saturated_s: float = 4.0
    """With more work waiting than can be done."""
    load_s: float = 4.0
    """At each of the loads."""
    loads: tuple[float, ...] = (0.3, 0.7)
    """Shares of the rate at saturation."""
    replicas: int | None = None
    """Each with one core; None: as many as this process may use."""
    seed: int = 0


def measure_served(
    model: Path | str,
    texts: Sequence[str],
    *,
    precision: str,
    variant: str,
    trace: Sequence[Arrival] = (),
    plan: ServedPlan | None = None,
) -> ServedFigures:
    """Serve an encoder on this machine and replay work.

    Args:
        model: an artifact or a plain model.
        texts: what is asked at saturation, over and over, and drawn from for synthetic loads.
        precision: what the engine computes in.
        variant: of an artifact.
        trace: arrivals to replay as they were; without any, Poisson arrivals at the plan's loads.
        plan: how much to measure.

    Raises:
        HeadraceError: the model cannot be served, or jobs fail.
    """
    plan = plan or ServedPlan()
    replicas = plan.replicas or len(os.sched_getaffinity(0))
    with LocalService(_config(model, precision, variant, replicas)) as service:
        return asyncio.run(_measure(service.url, list(texts), trace, plan, replicas))


def _config(model: Path | str, precision: str, variant: str, replicas: int) -> ServiceConfig:
    engine: dict[str, Any] = {"kind": "encoder", "model": str(model), "precision": precision, "overlong": "truncate"}
    hosted = {"engine": engine | {"variant": variant}, "pools": [{"replicas": replicas, "cpus": 1}]}
    # Not by `load_config`: what the environment says is of the user's own service, whose Redis this is none of.
    return ServiceConfig.model_validate({"models": {_NAME: hosted}})


async def _measure(
    url: str, texts: list[str], trace: Sequence[Arrival], plan: ServedPlan, replicas: int
) -> ServedFigures:
    async with AsyncClient(url) as client:
        await _saturated(client, texts, plan.saturated_s / 4)  # replicas warm up
        rate = await _saturated(client, texts, plan.saturated_s)
        traces = [trace] if trace else [synthetic_trace(texts, share * rate, plan) for share in plan.loads]
        loads = [await _replayed(client, arrivals, rate) for arrivals in traces]
    return ServedFigures(texts_per_s=rate, replicas=replicas, loads=loads)


def synthetic_trace(texts: Sequence[str], per_s: float, plan: ServedPlan) -> list[Arrival]:
    """Arrivals of nobody in particular, so many a second, for as long as the plan says."""
    return poisson_trace(texts, per_s=per_s, count=max(2, round(per_s * plan.load_s)), seed=plan.seed)


async def _saturated(client: AsyncClient, texts: Sequence[str], seconds: float) -> float:
    """Texts a second while there is always more to do.

    Raises:
        HeadraceError: a job fails.
    """
    started, answered = time.perf_counter(), 0

    def jobs() -> Any:
        for text in cycle(texts):
            if time.perf_counter() - started > seconds:
                return
            yield Job(model=_NAME, input=text)

    async for result in client.map(jobs(), in_flight=_IN_FLIGHT, ordered=False):
        result.unwrap()
        answered += 1
    return answered / (time.perf_counter() - started)


async def _replayed(client: AsyncClient, arrivals: Sequence[Arrival], most_per_s: float) -> LoadFigures:
    """Send jobs when they are due, whatever became of those before, and see how long each took from then."""
    started = time.perf_counter()

    async def send(arrival: Arrival) -> float | None:
        due = started + arrival.offset_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        try:
            (await client.run(Job(model=_NAME, input=arrival.text), timeout_s=_ANSWER_S)).unwrap()
        except HeadraceError:
            return None
        return (time.perf_counter() - due) * 1000

    answers = await asyncio.gather(*(send(arrival) for arrival in arrivals))
    took_ms = sorted(answer for answer in answers if answer is not None)
    if not took_ms:
        raise HeadraceError(f"none of {len(arrivals):,} jobs was answered")
    span_s = max(arrivals[-1].offset_s - arrivals[0].offset_s, 1e-3)
    per_s = len(arrivals) / span_s
    return LoadFigures(
        texts_per_s=round(per_s, 2),
        share=round(per_s / most_per_s, 3),
        p50_ms=round(statistics.median(took_ms), 3),
        p99_ms=round(_percentile(took_ms, 0.99), 3),
        failed=len(answers) - len(took_ms),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
