"""How soon the pools follow the work: from a burst to the raised target, and from no replica to the first answer.

The engine waits instead of computing, so that what is measured is the way from a job in Redis to a replica more. What
is left in the times is Ray's: a process that starts, imports and is made known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ray import serve

from headrace import Client, Job
from headrace.errors import HeadraceError
from headrace_cluster.config.settings import load_config
from headrace_cluster.local import APP, LocalService
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["WaitingEngine", "measure_autoscaling"]

_JOB_S: Final = 0.05
_REPLICAS: Final = 4
_WITHIN_S: Final = 180.0
_POLL_S: Final = 0.02


class WaitingEngine:
    """Answers with its input after a time, and takes a time to load.

    Args:
        job_s: seconds for each job.
        load_s: seconds until it is loaded.
    """

    def __init__(self, job_s: float = _JOB_S, load_s: float = 0.0) -> None:
        time.sleep(load_s)
        self._job_s = job_s
        self.info = EngineInfo(variant="waiting", task="echo", device="cpu", load_s=load_s)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Everything is valid."""
        return [Prepared(1, value) for value, _params in requests]

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """The inputs, as they came, after so long."""
        time.sleep(self._job_s * len(items))
        return [item.data for item in items]

    def example(self) -> tuple[Any, dict[str, Any]]:
        """Any text."""
        return "headrace", {}


def measure_autoscaling(*, jobs: int = 1000, load_s: float = 1.0) -> dict[str, float]:
    """Seconds from a burst of so many jobs to the raised target, and from no replica to the first answer.

    Args:
        jobs: of 50 ms each; they come at once, and one replica has been there.
        load_s: how long the model that has no replica takes to load.

    Raises:
        HeadraceError: it did not happen at all.
    """
    config = load_config(
        {
            "models": {
                "burst": _model(minimum=1, load_s=0.0),
                "rests": _model(minimum=0, load_s=load_s),
            },
            "router": {"cpus": 0.1},
        }
    )
    with LocalService(config) as service, Client(service.url) as client:
        began_s = time.perf_counter()
        client.run(Job(model="rests", input=1), timeout_s=_WITHIN_S)
        from_zero_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        client.submit_many([Job(model="burst", input=n) for n in range(jobs)])
        burst_to_target_s = _until(lambda: _asked_for("burst@cpu") > 1, began_s)
    return {"burst_to_target_s": burst_to_target_s, "from_zero_s": from_zero_s, "load_s": load_s}


def _model(*, minimum: int, load_s: float) -> dict[str, Any]:
    return {
        "engine": {
            "kind": "custom",
            "target": f"{WaitingEngine.__module__}:{WaitingEngine.__name__}",
            "options": {"load_s": load_s},
        },
        "pools": [{"cpus": 0.1, "min_replicas": minimum, "max_replicas": _REPLICAS}],
        "batching": {"max_jobs": 8},
        "scaling": {"drain_s": 5.0},
    }


def _asked_for(pool: str) -> int:
    """Replicas that run, and that are being started."""
    states = serve.status().applications[APP].deployments[pool].replica_states
    return sum(count for state, count in states.items() if state in ("RUNNING", "STARTING"))


def _until(condition: Callable[[], bool], began_s: float) -> float:
    while not condition():
        if time.perf_counter() - began_s > _WITHIN_S:
            raise HeadraceError(f"the pool was not scaled within {_WITHIN_S:.0f} s")
        time.sleep(_POLL_S)
    return time.perf_counter() - began_s
