"""A Ray cluster of pods, started and changed as KubeRay's operator does, from the manifests of an overlay.

The head comes back under another address, as a pod does, and there may be several clusters, each with its own image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from deploy.derived import HEAD_SERVICE, RAYLET_LIVES, READY_HEAD, READY_WORKER
from deploy.manifests import Group, Manifests
from deploy.operator_stand_in import Operator, is_running, redis_servers
from deploy.pods import Pod, PodNetwork
from support.waiting import eventually_sync

__all__ = ["START_S", "PodCluster", "pod_network"]

START_S: Final = 180.0
_LAST_WORDS: Final = "grep -h headrace /tmp/ray/session_latest/logs/worker-*.err | tail -n 12 | cut -c 1-200"
"""What routers and replicas of a pod said last."""


@contextmanager
def pod_network(manifests: Manifests, folder: Path) -> Iterator[PodNetwork]:
    """A network with the Redis servers of the manifests on it; pods that are started there end with it."""
    names = {pod.name: PodNetwork.service_address(2 + n) for n, pod in enumerate(manifests.servers)}
    network = PodNetwork(folder, names)
    with redis_servers(manifests, folder, names):
        try:
            yield network
        except BaseException:
            for pod in _living(network):
                print(f"--- {pod.name}", pod.run(_LAST_WORDS).stdout, sep="\n", file=sys.stderr)
            raise
        finally:
            for pod in _living(network):
                pod.kill()


def _living(network: PodNetwork) -> list[Pod]:
    return [pod for pod in network.pods if not _ended(pod)]


class PodCluster:
    """One Ray cluster.

    Args:
        name: what its pods' names begin with; also under which it keeps its state.
        manifests: what it is made of.
        network: that its pods are on.
        variables: of its pods, besides those that the operator gives them.
    """

    def __init__(
        self, name: str, manifests: Manifests, network: PodNetwork, variables: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.network = name, network
        self.nodes: list[Pod] = []
        told = {"RAY_external_storage_namespace": name, **(variables or {})}
        self._operator = Operator(manifests, network, prefix=f"{name}-", variables=told)
        self.head = self._head()

    def _head(self) -> Pod:
        head = self._operator.start(self._operator.manifests.head)
        for node in self.nodes:
            node.resolve(HEAD_SERVICE, head.address)
        return head

    # -- what the operator does -------------------------------------------------------------------------

    def serve(self, *groups: str) -> None:
        """Start a node of each of these groups, and the application; returns when the operator would call it ready."""
        self.wait_for_head()
        by_name = {group.name: group for group in self._operator.manifests.groups}
        for name in groups:  # one after the other: this may be a machine of two cores
            self.nodes.append(self._node(by_name[name]))
        self._operator.deploy(self.head.address)
        eventually_sync(lambda: self.running, within_s=START_S)
        for node in self.nodes:
            eventually_sync(lambda node=node: _says_yes(node, READY_WORKER), within_s=START_S)  # type: ignore[misc]

    def _node(self, group: Group) -> Pod:
        """A node that has joined; a pod that ends instead is made again."""
        node = self._operator.start(group, {HEAD_SERVICE: self.head.address})
        eventually_sync(lambda: _ended(node) or _says_yes(node, RAYLET_LIVES), within_s=START_S)
        return self._node(group) if _ended(node) else node

    def replace_head(self) -> None:
        """Start another head, whose address the name leads to from now on."""
        self.head = self._head()

    def wait_for_head(self) -> None:
        """Until its raylet and its control store answer; one that ends instead, for it was too slow, is made again."""
        eventually_sync(self._head_answers, within_s=2 * START_S)

    def _head_answers(self) -> bool:
        if _ended(self.head):
            self.replace_head()
        return _says_yes(self.head, READY_HEAD)

    def delete(self, *, grace_s: float) -> None:
        """As a RayCluster is deleted: all pods are told at once, and killed where they do not end in time."""
        pods, deadline = [self.head, *self.nodes], time.monotonic() + grace_s
        for pod in pods:
            pod.terminate()
        for pod in pods:
            try:
                pod.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pod.kill()

    # -- what it says -----------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether Serve, asked at the head, has all that it was told to.

        Raises:
            RuntimeError: it has given up.
        """
        return is_running(self.status)

    @property
    def status(self) -> dict[str, Any]:
        """What Serve says of the application; empty where nobody answers."""
        try:
            return self._operator.status(self.head.address)
        except OSError:
            return {}

    def health(self) -> dict[str, Any]:
        """What the health route of one of its nodes says; empty where nothing is ready."""
        done = self.nodes[0].run("wget --tries 1 -T 5 -q -O- http://localhost:8000/health")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found


def _ended(pod: Pod) -> bool:
    return pod.process.poll() is not None


def _says_yes(pod: Pod, probe: str) -> bool:
    return pod.run(probe).returncode == 0
