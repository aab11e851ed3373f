"""Ray's own autoscaler on this machine, with nodes that are raylets beside each other: Ray's fake provider of nodes.

A node's resources are claims, so one may have a GPU where there is none. `AutoscalingCluster` kills every Ray process
that it can see when it starts and ends: it belongs into namespaces of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import ray
from ray._private.worker import global_worker
from ray.cluster_utils import FAKE_HEAD_NODE_ID, AutoscalingCluster
from ray.core.generated.common_pb2 import NodeDeathInfo
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from chaos.ray_nodes import family_of

__all__ = ["FakeNodes", "Node"]

_PROVIDER: Final = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_MOST_WORKERS: Final = 8
_NO_COMMANDS: Final = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_INTERFACE: Final = "nodes0"
_ASK_S: Final = 10.0
_OBJECT_STORE_BYTES: Final = 128 << 20


class Node(NamedTuple):
    """A node that the autoscaler brought, as the control store has it."""

    id: str
    lives: bool
    death: str
    """Of what kind it was; `UNSPECIFIED` as long as it lives."""
    raylet_socket: str


class _Cluster(AutoscalingCluster):  # type: ignore[misc]
    """The original reads a file that Ray's wheel does not have."""

    def _generate_config(
        self,
        head_resources: dict[str, float],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "fake",
            "max_workers": _MOST_WORKERS,
            "provider": {
                "type": "external",
                "module": _PROVIDER,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": autoscaler_v2,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "auth": {},
            "docker": {},
            "upscaling_speed": 1.0,
            "head_node_type": "ray.head.default",
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            **{name: [] for name in _NO_COMMANDS},
            **more,
        }


class FakeNodes:
    """A Ray whose head has cores and no GPU, and whose autoscaler may add nodes with one.

    It is started with this, is found by RAY_ADDRESS, and ends with the namespace of processes that it was started in.

    Args:
        cpus: of the head.
        most: how many nodes there may be besides it.
        idle_s: for how long a node must have had nothing to do before it goes.
    """

    def __init__(self, *, cpus: float, most: int, idle_s: float) -> None:
        resources = {"CPU": 1, "GPU": 1, "object_store_memory": _OBJECT_STORE_BYTES}
        node = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}
        self._cluster = _Cluster(
            {"CPU": cpus, "object_store_memory": _OBJECT_STORE_BYTES},
            {"gpu": node},
            autoscaler_v2=True,
            idle_timeout_minutes=idle_s / 60,
        )

        _set_up_network()
        Path("/tmp/ray").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp/ray"], check=True)  # other Rays' notes lie there
        os.environ["RAY_AUTH_MODE"] = "disabled"  # else the head wants a token that only `ray.init` would make
        self._cluster.start()
        os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:6379"

    def all(self) -> list[Node]:
        """Every node but the head that there ever was, in the order in which they came."""
        infos = global_worker.gcs_client.get_all_node_info(timeout=_ASK_S).values()
        found = [
            Node(
                info.node_id.hex(),
                info.state == GcsNodeInfo.ALIVE,
                NodeDeathInfo.Reason.Name(info.death_info.reason),
                info.raylet_socket_name,
            )
            for info in infos
            if not info.is_head_node
        ]
        return sorted(found)

    def living(self) -> list[Node]:
        """Those that are there."""
        return [node for node in self.all() if node.lives]

    def kill(self, node: Node) -> None:
        """All processes of a node at once: its raylet and every actor on it."""
        raylet = _raylet_with(node.raylet_socket)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # nobody of the family may live to tell
            for pid in list(family_of(raylet)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def _set_up_network() -> None:
    """An address to be found at: with the loopback interface alone, Ray takes whatever this host's name leads to."""
    for words in (
        ("link", "set", "lo", "up"),
        ("link", "add", _INTERFACE, "type", "bridge"),
        ("address", "add", "10.78.0.1/24", "dev", _INTERFACE),
        ("link", "set", _INTERFACE, "up"),
        ("route", "add", "default", "dev", _INTERFACE),
    ):
        subprocess.run(["ip", *words], check=True)


def _raylet_with(words: str) -> int:
    """The raylet that was started with these words among its arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended as we looked
            arguments = (folder / "cmdline").read_text("utf-8", "replace").split("\0")
            if arguments[0].endswith("/raylet") and any(words in argument for argument in arguments):
                return int(folder.name)
    raise LookupError(f"no raylet has {words} among its arguments")
