"""`headrace bench observability`: what metrics and traces cost, as they are by default, against none.

Two whole services stand side by side, one with metrics and one without, and the same jobs go through each in turn, now
this one first and now that: what else the machine does falls on both. Traces are off by default, which costs a look.

Where the processor is what everybody waits for, throughput is lost as processor time is taken; and what a service's
processes took of it for a job varies far less than how long they had to wait for it on a machine that others use.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, NamedTuple

from headrace import AsyncClient, Job
from headrace_cluster.bench import observability_service
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.bench.observability_service import ECHO, ENCODER
from headrace_cluster.bench.process_tree import tree_cpu_s
from headrace_cluster.bench.throughput import answered_in_s, mixed_texts

__all__ = ["ObservabilityPlan", "run_observability"]

Say = Callable[[str], None]

_IN_FLIGHT: Final = 1024
_END_S: Final = 60.0


class _Service(NamedTuple):
    url: str
    pid: int


class _Round(NamedTuple):
    """Of one service."""

    jobs_per_s: float
    cpu_us_per_job: float
    """All of its processes together: Ray's, Serve's and the server's too."""


_Pair = tuple[_Round, _Round]
"""The same jobs with metrics, and without."""


@dataclass(frozen=True, slots=True)
class ObservabilityPlan:
    """How much to measure."""

    jobs: int = 40_000
    """Of a round through the model that does nothing."""
    texts: int = 3_000
    """Of a round through the encoder."""
    rounds: int = 10

    @classmethod
    def quick(cls) -> ObservabilityPlan:
        """A short look."""
        return cls(jobs=4_000, texts=200, rounds=2)


def run_observability(plan: ObservabilityPlan, say: Say, *, model: str | None = None) -> dict[str, Any]:
    """The cost of metrics as a share of throughput, with the rates it is of.

    Args:
        plan: how much.
        say: is told what is being done.
        model: the encoder's folder, artifact or hub id; None: the packaged all-MiniLM-L6-v2.

    Returns:
        `transport_cost` of jobs that do nothing and `e2e_cost` of texts: the throughput that metrics take, median of
        the rounds, below 0 where the service with metrics was the faster one; `…_costs`, each round's; `…_cpu_cost` and
        `…_cpu_costs`, the same of processor time; and the medians with metrics and without that these come from.

    Raises:
        RuntimeError: a service did not start; with what it said last.
        HeadraceError: jobs failed.
    """
    encoder = model or str(packaged_encoder())
    texts = mixed_texts(encoder, plan.texts)
    say("starting a service with metrics, and one without")
    with _service("on", encoder) as watched, _service("off", encoder) as unwatched:
        transport = _in_turn(watched, unwatched, ECHO, list(range(plan.jobs)), plan.rounds, say)
        e2e = _in_turn(watched, unwatched, ENCODER, texts, plan.rounds, say)
    return _told("transport", transport) | _told("e2e", e2e) | {"rounds": plan.rounds}


@contextmanager
def _service(metrics: str, model: str) -> Iterator[_Service]:
    command = [sys.executable, "-m", observability_service.__name__, metrics, model]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not (url := process.stdout.readline().strip()):
                errors.seek(0)
                raise RuntimeError(f"the service did not start:\n{errors.read()[-2000:]}")
            yield _Service(url, process.pid)
            process.stdin.close()
            process.wait(_END_S)
        finally:
            process.kill()


def _in_turn(
    watched: _Service, unwatched: _Service, model: str, inputs: Sequence[Any], rounds: int, say: Say
) -> list[_Pair]:
    for service in (watched, unwatched):
        asyncio.run(_round(service, model, inputs[: len(inputs) // 4]))
    pairs = []
    for number in range(rounds):
        say(f"{model}: round {number + 1} of {rounds}")
        order = (watched, unwatched) if number % 2 else (unwatched, watched)
        measured = {service: asyncio.run(_round(service, model, inputs)) for service in order}
        pairs.append((measured[watched], measured[unwatched]))
    return pairs


async def _round(service: _Service, model: str, inputs: Sequence[Any]) -> _Round:
    jobs = (Job(model=model, input=one) for one in inputs)
    async with AsyncClient(service.url) as client:
        before_s = tree_cpu_s(service.pid)
        took_s = await answered_in_s(client, jobs, len(inputs), in_flight=_IN_FLIGHT)
        return _Round(len(inputs) / took_s, (tree_cpu_s(service.pid) - before_s) / len(inputs) * 1e6)


def _told(name: str, pairs: Sequence[_Pair]) -> dict[str, Any]:
    costs = [1 - watched.jobs_per_s / unwatched.jobs_per_s for watched, unwatched in pairs]
    cpu_costs = [watched.cpu_us_per_job / unwatched.cpu_us_per_job - 1 for watched, unwatched in pairs]
    return {
        f"{name}_cost": round(median(costs), 4),
        f"{name}_costs": " ".join(f"{cost:.3f}" for cost in costs),
        f"{name}_cpu_cost": round(median(cpu_costs), 4),
        f"{name}_cpu_costs": " ".join(f"{cost:.3f}" for cost in cpu_costs),
        f"{name}_jobs_per_s": round(median(watched.jobs_per_s for watched, _ in pairs), 1),
        f"{name}_jobs_per_s_without": round(median(unwatched.jobs_per_s for _, unwatched in pairs), 1),
        f"{name}_cpu_us_per_job": round(median(watched.cpu_us_per_job for watched, _ in pairs), 1),
        f"{name}_cpu_us_per_job_without": round(median(unwatched.cpu_us_per_job for _, unwatched in pairs), 1),
    }
