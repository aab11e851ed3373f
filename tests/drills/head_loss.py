"""A Ray head is lost, with its control store, its Serve controller and its dashboard, while jobs run.

Routers and replicas are on other nodes and go on; nobody starts what dies meanwhile. A new head finds in the control
store's Redis what there was. Run in namespaces of its own, with a folder as its argument; prints what it measured.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from deploy.operator_stand_in import jobs_url, manifests_with
from deploy.pods import Pod
from drills.load import Answer, Load, figures
from drills.pod_cluster import START_S, PodCluster, pod_network
from headrace import Client
from support.waiting import eventually_sync

__all__ = ["main"]

MODEL: Final = "minilm"
_NODES: Final = ("cpu", "cpu")
_SOME: Final = 300
"""Answers: some seconds' worth of them."""

Process = tuple[str, int]
"""A replica's: its pod, and its number there."""


def main(folder: Path) -> dict[str, Any]:
    """Start two nodes, lose the head under load and a replica besides, get a new head, and lose another replica."""
    manifests = manifests_with({"kind": "custom", "target": "drills.engine:TellingEngine"}, "cpu")
    with pod_network(manifests, folder) as network:
        cluster = PodCluster("first", manifests, network)
        cluster.serve(*_NODES)
        url = jobs_url(network)
        with Load(url, MODEL, "sleep:0.02") as load:
            told = _drill(cluster, load)
        with Client(url) as client:
            audit = client.audit(MODEL)
        told["audit"] = {"submitted": audit.submitted, "ok": audit.ok, "lost": audit.lost, "doubled": audit.doubled}
        return told | {"answered": len(load.answers)}


def _drill(cluster: PodCluster, load: Load) -> dict[str, Any]:
    begin_s = time.monotonic()
    eventually_sync(lambda: load.more_than(_SOME, begin_s) and len(_replicas(load.answers)) == 2, within_s=START_S)
    before = figures(load.since(begin_s))

    cluster.head.kill()
    headless_s = time.monotonic()
    eventually_sync(lambda: load.more_than(_SOME, headless_s), within_s=START_S)
    went_on = _replicas(load.since(headless_s))
    victim, other = sorted(went_on)
    _kill(cluster, victim)
    alone_s = time.monotonic()
    eventually_sync(lambda: load.more_than(_SOME, alone_s), within_s=START_S)
    without_head = figures(load.since(headless_s))

    again_s = time.monotonic()
    cluster.replace_head()
    cluster.wait_for_head()
    answers_s = time.monotonic()
    eventually_sync(lambda: len(_replicas(load.since(answers_s))) == 2 and cluster.running, within_s=START_S)
    replaced_s = time.monotonic()

    _kill(cluster, other)
    eventually_sync(lambda: len(_replicas(load.since(replaced_s)) - {victim, other}) == 2, within_s=START_S)
    return {
        "before": before,
        "without_head": without_head,
        "with_head_again": figures(load.since(again_s)),
        "replicas_without_head": len(went_on),
        "answered_by_the_dead": len([one for one in load.since(alone_s + 1) if _process(one) == victim]),
        "without_head_s": round(again_s - headless_s, 1),
        "head_started_in_s": round(answers_s - again_s, 1),
        "first_replaced_after_s": round(replaced_s - answers_s, 1),
        "second_replaced_after_s": round(time.monotonic() - replaced_s, 1),
    }


def _replicas(answers: list[Answer]) -> set[Process]:
    """Those that gave these answers."""
    return {_process(answer) for answer in answers}


def _process(answer: Answer) -> Process:
    _release, pod, pid = answer.output
    return pod, pid


def _kill(cluster: PodCluster, process: Process) -> None:
    name, pid = process
    [pod] = [node for node in cluster.nodes if node.name == name]
    _run(pod, f"kill -9 {pid}")


def _run(pod: Pod, command: str) -> None:
    done = pod.run(command)
    if done.returncode != 0:
        raise RuntimeError(f"{command} in {pod.name}: {done.stderr}")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
