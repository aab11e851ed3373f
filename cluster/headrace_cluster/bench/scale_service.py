"""How a whole service grows: with replicas whose engine waits, and with routers whose engine does nothing.

All of it is real: Ray, Serve, Redis, producers in processes of their own. An engine that waits takes no core, so that
eight replicas can be had on two of them, and what is lost against eight times the speed is lost between the jobs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace import AsyncClient, Job
from headrace.errors import HeadraceError
from headrace_cluster.bench.held_processes import HeldProcesses
from headrace_cluster.bench.scale_autoscaling import WaitingEngine
from headrace_cluster.bench.throughput import answered_in_s
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import LocalService

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["ServicePlan", "measure_replicas", "measure_routers"]

Say = Callable[[str], None]

_JOB_S: Final = 0.4 / 64
"""So that a full batch takes long against what is between two of them."""
_BATCH_JOBS: Final = 64
_IN_FLIGHT_BATCHES: Final = 6
"""For each replica: two are there, as many are read ahead, and some wait."""
_PRODUCERS: Final = 2
_IN_FLIGHT: Final = 2048
_TIMEOUT_S: Final = 300.0
_HELD_SHARE: Final = 0.1
"""Two routers and what they cause are to find a core free whenever they run, also where there are two in all."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """How much to measure."""

    replicas: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 8.0
    """Work for each replica."""
    routers: tuple[int, ...] = (1, 2)
    jobs: int = 60_000
    """Through the routers, from two producers."""
    held_jobs: int = 30_000
    """Through the routers that are held."""
    rounds: int = 3

    @classmethod
    def quick(cls) -> ServicePlan:
        """A short look."""
        return cls(replicas=(1, 8), seconds=2.0, jobs=10_000, held_jobs=5_000, rounds=1)


# -- replicas -------------------------------------------------------------------------------------------------


def measure_replicas(plan: ServicePlan, say: Say) -> dict[str, Any]:
    """Jobs a second of pools of each size, and what of the linear growth is left.

    Raises:
        HeadraceError: jobs failed.
    """
    say(f"replicas: starting {sum(plan.replicas)}")
    config = load_config(
        {
            "models": {_name(count): _waiting(count) for count in plan.replicas},
            "router": {"cpus": 0.1},
        }
    )
    rows = []
    with LocalService(config) as service:
        for count in plan.replicas:
            say(f"replicas: {count}")
            rows.append(_grown(service, count, plan.seconds))
    first = rows[0]["jobs_per_s"] / rows[0]["replicas"]
    for row in rows:
        row["efficiency"] = round(row["jobs_per_s"] / row["replicas"] / first, 4)
    return {f"efficiency_{rows[-1]['replicas']}_replicas": rows[-1]["efficiency"], "replicas": rows}


def _name(replicas: int) -> str:
    return f"waits-{replicas}"


def _waiting(replicas: int) -> dict[str, Any]:
    return {
        "engine": {
            "kind": "custom",
            "target": f"{WaitingEngine.__module__}:{WaitingEngine.__name__}",
            "options": {"job_s": _JOB_S},
        },
        "pools": [{"replicas": replicas, "cpus": 0.1}],
        "batching": {"max_jobs": _BATCH_JOBS},
    }


def _grown(service: LocalService, replicas: int, seconds: float) -> dict[str, Any]:
    model = _name(replicas)
    jobs = round(seconds / _JOB_S / _BATCH_JOBS) * _BATCH_JOBS * replicas
    before = service.counts()[model]
    in_flight = _IN_FLIGHT_BATCHES * _BATCH_JOBS * replicas
    took_s = asyncio.run(_produce(service.url, model, jobs, in_flight=in_flight))
    after = service.counts()[model]
    return {
        "replicas": replicas,
        "jobs_per_s": round(jobs / took_s, 1),
        "ideal_jobs_per_s": round(replicas / _JOB_S, 1),
        "router_cpu_us_per_job": round((after["process_cpu_s"] - before["process_cpu_s"]) / jobs * 1e6, 1),
        "mean_batch_jobs": round(jobs / (after["batches"] - before["batches"]), 1),
    }


async def _produce(
    url: str, model: str, jobs: int, *, in_flight: int, begin: Callable[[], object] = lambda: 0
) -> float:
    """Seconds from the first of so many jobs to the last answer; `begin` is called when all is ready."""
    async with AsyncClient(url) as client:
        (await client.run(Job(model=model, input=0), timeout_s=60)).unwrap()
        await asyncio.to_thread(begin)
        return await answered_in_s(client, (Job(model=model, input=n) for n in range(jobs)), jobs, in_flight=in_flight)


# -- routers --------------------------------------------------------------------------------------------------


def measure_routers(plan: ServicePlan, say: Say) -> dict[str, Any]:
    """Jobs a second through one router and through several, each time from two producers.

    More than all cores can do is not to be had from any number of routers: `cores_busy` says how near to that it was,
    and `router_busy` how much of a core the only router took. So both are measured once more with each router held to
    `_HELD_SHARE` of the time, which leaves cores for the rest.
    """
    free, held = list[dict[str, Any]](), list[dict[str, Any]]()
    for routers in plan.routers:
        say(f"routers: starting {routers}")
        config = load_config(
            {
                "models": {"echo": {"engine": {"kind": "echo"}, "pools": [{"replicas": 2, "cpus": 0.1}]}},
                "router": {"replicas": routers, "cpus": 0.1},
            }
        )
        with LocalService(config) as service:
            pids = _pids(service, routers)
            say(f"routers: {routers}")
            free.append(_best(service, pids, plan.jobs, plan.rounds))
            say(f"routers: {routers}, each held to {_HELD_SHARE:.0%} of a core")
            with HeldProcesses(pids, _HELD_SHARE):
                held.append(_best(service, pids, plan.held_jobs, plan.rounds) | {"held_to": _HELD_SHARE})
    most = plan.routers[-1]
    return {
        f"speedup_{most}_routers": round(_rate(free[-1]) / _rate(free[0]), 3),
        f"speedup_{most}_held_routers": round(_rate(held[-1]) / _rate(held[0]), 3),
        "cores": multiprocessing.cpu_count(),
        "routers": free + held,
    }


def _pids(service: LocalService, routers: int) -> set[int]:
    """Of all routers' processes: one of them answers each time, whichever has less to do."""
    found, until_s = set[int](), time.monotonic() + _TIMEOUT_S
    while len(found) < routers:
        if time.monotonic() > until_s:
            raise HeadraceError(f"of {routers} routers only {len(found)} answered within {_TIMEOUT_S:.0f} s")
        found.add(service.counts()["echo"]["pid"])
    return found


def _best(service: LocalService, pids: set[int], jobs: int, rounds: int) -> dict[str, Any]:
    """Of some rounds."""
    return max((_through(service, len(pids), jobs) for _ in range(rounds)), key=_rate)


def _rate(row: dict[str, Any]) -> float:
    return float(row["jobs_per_s"])


def _through(service: LocalService, routers: int, jobs: int) -> dict[str, Any]:
    """From when all producers begin until the last of them has all his answers."""
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(_PRODUCERS + 1), context.Queue()
    producers = [
        context.Process(target=_producer, args=(service.url, jobs // _PRODUCERS, barrier, done), daemon=True)
        for _ in range(_PRODUCERS)
    ]
    for producer in producers:
        producer.start()
    try:
        barrier.wait(_TIMEOUT_S)
        router, machine = service.counts()["echo"], _Cores()
        took_s = max(float(done.get(timeout=_TIMEOUT_S)) for _ in producers)
        busy = _Cores().busy_since(machine)
        router_cpu_s = service.counts()["echo"]["process_cpu_s"] - router["process_cpu_s"]
    finally:
        for producer in producers:
            producer.join(10)
            producer.kill()
    row = {"routers": routers, "jobs_per_s": round(jobs / took_s, 1), "cores_busy": round(busy, 3)}
    return row | {"router_busy": round(router_cpu_s / took_s, 3) if routers == 1 else None}


def _producer(url: str, jobs: int, barrier: Barrier, done: Queue[float]) -> None:
    done.put(asyncio.run(_produce(url, "echo", jobs, in_flight=_IN_FLIGHT, begin=lambda: barrier.wait(_TIMEOUT_S))))


class _Cores:
    """How much all cores of the machine have done up to now."""

    def __init__(self) -> None:
        user, nice, system, idle, waits, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        self._idle = idle + waits
        self._all = user + nice + system + idle + waits + sum(rest)

    def busy_since(self, before: _Cores) -> float:
        """The share of the time since then in which they were busy."""
        return 1 - (self._idle - before._idle) / max(1, self._all - before._all)
