"""A GPU pool from nothing: Ray's autoscaler brings a node for a job, takes it away again, and loses one under load.

Run in namespaces of its own, with a folder as its argument; prints what it measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from drills.fake_nodes import FakeNodes
from headrace import Client, Job
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService
from support.waiting import eventually_sync

__all__ = ["JOBS", "main"]

MODEL: Final = "onlygpu"
JOBS: Final = 600
_WITHIN_S: Final = 180.0
_SHORT: Final = "sleep:0"
_USUAL: Final = "sleep:0.05"


def configuration(redis_url: str) -> ServiceConfig:
    """A pool of no replica to two, each of which needs a GPU; the router must not hold a GPU's node."""
    return load_config(
        {
            "redis_url": redis_url,
            "models": {
                MODEL: {
                    "engine": {"kind": "custom", "target": "drills.engine:TellingEngine"},
                    "pools": [{"name": "gpu", "cpus": 0.5, "gpus": 1, "min_replicas": 0, "max_replicas": 2}],
                    "batching": {"max_jobs": 4},
                    "scaling": {"drain_s": 2, "idle_s": 1, "cool_down_s": 1},
                }
            },
            "router": {"cpus": 0.5},
        }
    )


def main(folder: Path) -> dict[str, Any]:
    """One job, then many."""
    nodes = FakeNodes(cpus=2, most=2, idle_s=3)
    with (
        EmbeddedServer(folder / "redis", fsync="always", die_with_parent=True) as server,
        LocalService(configuration(server.url)) as service,
        Client(service.url) as client,
    ):
        told = {"nodes_at_first": len(nodes.living())}
        return told | _one_job(nodes, client) | _many_jobs(nodes, client)


def _one_job(nodes: FakeNodes, client: Client) -> dict[str, Any]:
    """No node, a job, a node, an answer, and no node again."""
    began_s = time.monotonic()
    receipt = client.submit(Job(model=MODEL, input=_SHORT))
    node_s = _seconds(began_s, lambda: nodes.living())
    client.result(receipt, timeout_s=_WITHIN_S).unwrap()
    answer_s = time.monotonic() - began_s
    began_s = time.monotonic()
    gone_s = _seconds(began_s, lambda: not nodes.living())
    [node] = nodes.all()
    return {
        "node_after_s": node_s,
        "first_answer_after_s": round(answer_s, 1),
        "node_gone_after_s": gone_s,
        "went_because": node.death,
    }


def _many_jobs(nodes: FakeNodes, client: Client) -> dict[str, Any]:
    """Two nodes under load, one of which is killed; in the end no node again."""
    receipts = client.submit_many([Job(model=MODEL, input=_USUAL) for _ in range(JOBS)])
    eventually_sync(lambda: len(nodes.living()) == 2, within_s=_WITHIN_S)
    some = JOBS // 10
    results = [client.result(receipt, timeout_s=_WITHIN_S) for receipt in receipts[:some]]
    victim = nodes.living()[0]
    unanswered = client.audit(MODEL).live
    began_s = time.monotonic()
    nodes.kill(victim)
    results += [client.result(receipt, timeout_s=_WITHIN_S) for receipt in receipts[some:]]
    answered_s = time.monotonic() - began_s
    gone_s = _seconds(time.monotonic(), lambda: not nodes.living())
    audit = client.audit(MODEL)
    return {
        "unanswered_at_the_kill": unanswered,
        "answered": len({result.id for result in results if result.ok}),
        "all_answered_after_s": round(answered_s, 1),
        "all_gone_after_s": gone_s,
        "deaths": [node.death for node in nodes.all()],
        "audit": {"submitted": audit.submitted, "ok": audit.ok, "lost": audit.lost, "doubled": audit.doubled},
    }


def _seconds(began_s: float, condition: Callable[[], object]) -> float:
    """How long it takes until something holds."""
    eventually_sync(condition, within_s=_WITHIN_S)
    return round(time.monotonic() - began_s, 1)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
