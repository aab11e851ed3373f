"""The manifests, run: their groups as Ray nodes, their Serve config, their Redis servers, and a node that dies.

Run in namespaces of its own (`test_manifest_run` starts it so): each group is a pod with an address, the very command
that the operator would derive, and the very files of ConfigMaps and Secrets at their very paths. Exchanged are two
things: the engines, for this machine has no GPU and fetches no model, and who starts pods, for there is no operator.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from deploy.derived import HEAD_SERVICE, RAYLET_LIVES, READY_HEAD, READY_WORKER
from deploy.operator_stand_in import Operator, is_running, jobs_url, manifests_with, redis_servers
from deploy.pods import FIRST_POD, Pod, PodNetwork
from headrace import Client, Job, Receipt, Result
from support.waiting import eventually_sync

__all__ = ["WAVE", "main"]

WAVE: Final = 600
"""Jobs that are submitted at once: so many that no pool is left out because another would be done sooner."""
_HELD: Final = "/tmp/ray/held"
"""In a pod's own file system: what its replica has in hand."""
_ENGINE: Final = {"kind": "custom", "target": "deploy.engine:PlaceEngine", "options": {"held": _HELD}}
_START_S: Final = 180.0
_NODES: Final = ("cpu", "cpu", "gpu", "gpu-spot")
"""Which nodes are started: the least of `cpu`, and of each GPU group one, for the two replicas that there are."""
_CATCH: Final = f"kill -STOP -1; test -s {_HELD} && cat {_HELD} || kill -CONT -1"
"""Stops all processes of a pod and tells what its replica has in hand; if that is nothing, they go on."""


def main(folder: Path) -> dict[str, Any]:
    """Start everything, run jobs, kill a node under load, and tell what came of it."""
    manifests = manifests_with(_ENGINE, "gpu-spot")
    names = {pod.name: PodNetwork.service_address(2 + n) for n, pod in enumerate(manifests.servers)}
    network = PodNetwork(folder, {**names, HEAD_SERVICE: FIRST_POD})
    with redis_servers(manifests, folder, names):
        operator = Operator(manifests, network)
        try:
            return _run(operator)
        finally:
            for pod in network.pods:
                if pod.process.poll() is None:
                    pod.kill()


def _run(operator: Operator) -> dict[str, Any]:
    started = time.monotonic()
    groups = {group.name: group for group in operator.manifests.groups}
    head = operator.start(operator.manifests.head)
    eventually_sync(lambda: head.run(READY_HEAD).returncode == 0, within_s=_START_S)
    nodes = []
    for name in _NODES:  # one after the other: this may be a machine of two cores
        nodes.append(node := operator.start(groups[name]))
        eventually_sync(lambda node=node: node.run(RAYLET_LIVES).returncode == 0, within_s=_START_S)  # type: ignore[misc]
    operator.deploy(head.address)
    eventually_sync(lambda: is_running(operator.status(head.address)), within_s=_START_S)
    for node in nodes:
        eventually_sync(lambda node=node: node.run(READY_WORKER).returncode == 0, within_s=_START_S)  # type: ignore[misc]
    told: dict[str, Any] = {"started_s": round(time.monotonic() - started, 1)}
    health = eventually_sync(lambda: _health(nodes[0], replicas=4), within_s=_START_S)
    told["health"] = health
    told["placement"] = _placement(operator, head)
    with Client(jobs_url(operator.network)) as client:
        told |= _jobs(client, nodes)
        audit = client.audit("minilm")
        told["audit"] = {"submitted": audit.submitted, "ok": audit.ok, "lost": audit.lost, "doubled": audit.doubled}
    told["health_after"] = eventually_sync(lambda: _health(nodes[0], replicas=3), within_s=_START_S)
    return told


class Load:
    """Numbered jobs in waves, and their answers in the same order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.receipts: list[Receipt] = []
        self.answers: list[Result] = []

    def submit(self, jobs: int = WAVE) -> None:
        """More of them."""
        numbers = range(len(self.receipts), len(self.receipts) + jobs)
        self.receipts += self._client.submit_many([Job(model="minilm", input=f"sleep:0.02 #{n}") for n in numbers])

    def collect(self) -> None:
        """Wait for all answers that are still to come."""
        waiting = self.receipts[len(self.answers) :]
        self.answers += [self._client.result(receipt, timeout_s=_START_S) for receipt in waiting]

    def spread(self, pods: set[str]) -> bool:
        """Whether each of the pods has answered, after another wave."""
        self.submit()
        self.collect()
        return pods <= _by_pod(self.answers).keys()


def _jobs(client: Client, nodes: list[Pod]) -> dict[str, Any]:
    """Jobs on all nodes; the last of them is killed while it has some in hand, and more are submitted."""
    load, victim = Load(client), nodes[-1]
    eventually_sync(lambda: load.spread({node.name for node in nodes}), within_s=_START_S)
    load.submit()
    held = eventually_sync(lambda: _caught(load, victim), within_s=_START_S)
    victim.kill()
    before = len(load.receipts)
    load.submit()
    load.collect()
    return {
        "answered": len({answer.id for answer in load.answers}),
        "ok": sum(answer.ok for answer in load.answers),
        "by_pod": _by_pod(load.answers),
        "held_by_pod": _by_pod(load.answers[number] for number in held),
        "later_by_pod": _by_pod(load.answers[before:]),
    }


def _caught(load: Load, victim: Pod) -> list[int]:
    """Stop a node under load in the middle of a batch: the numbers of its jobs, none of which it has answered."""
    load.submit(8)  # there is load for as long as it takes
    return [int(held.partition("#")[2]) for held in json.loads(victim.run(_CATCH).stdout or "[]")]


def _by_pod(answers: Iterable[Result]) -> dict[str, int]:
    return dict(sorted(Counter(str(answer.output) for answer in answers).items()))


def _health(node: Pod, *, replicas: int) -> dict[str, Any] | None:
    """What the health route says, asked for inside of a pod; None until there are so many replicas."""
    done = node.run("wget --tries 1 -T 5 -q -O- http://localhost:8000/health")
    answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return answer if answer and answer["models"]["minilm"]["replicas"] == replicas else None


def _placement(operator: Operator, head: Pod) -> dict[str, list[str]]:
    """For each deployment, the groups of the pods that its replicas are in."""
    groups = {pod.address: pod.name.rpartition("-")[0] for pod in operator.network.pods}
    return {
        name: sorted(groups[replica["node_ip"]] for replica in told["replicas"])
        for name, told in operator.status(head.address)["deployments"].items()
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
