"""A cluster whose routers and replicas are the actors of the real Serve application, on a Ray of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, Final

from chaos.cluster import Cluster, Topology
from chaos.orders import MODEL
from chaos.ray_nodes import RayNodes, family_of

__all__ = ["ServeCluster"]

_TITLES: Final = {"router": "ray::ServeReplica:headrace:router", "replica": f"ray::ServeReplica:headrace:{MODEL}@cpu"}
"""How Ray names the processes, in the table of processes."""


class ServeCluster(Cluster):
    """Serve brings back who dies. Everything between it and Redis goes through one proxy."""

    def __init__(self, directory: Path, topology: Topology, *, seed: int = 0, broken: str = "") -> None:
        super().__init__(directory, topology, seed=seed, broken=broken)
        self.proxies["replicas"] = self.proxies["routers"]
        self._service: Any = None
        self._nodes: RayNodes | None = None
        self._quiet = ExitStack()
        # Ray is used from one thread, so that proxies go on in this one meanwhile.
        self._ray = ThreadPoolExecutor(1, thread_name_prefix="chaos-serve")

    async def _start_service(self) -> None:
        # Ray tells of every death on standard output.
        said = self._quiet.enter_context((self.directory / "logs" / "serve.log").open("w"))
        self._quiet.enter_context(redirect_stdout(said))
        await asyncio.get_running_loop().run_in_executor(self._ray, self._serve)

    def _serve(self) -> None:
        from headrace_cluster.config.settings import load_config
        from headrace_cluster.local import LocalService

        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # actors import the engine from here
        if self.topology.nodes:
            self._nodes = RayNodes(self.topology.nodes, cpus=2, log=self.directory / "logs" / "nodes.log")
            os.environ["RAY_ADDRESS"] = self._nodes.address
        service = LocalService(load_config(self._config()))
        service.__enter__()
        self._service = service

    def _config(self) -> dict[str, Any]:
        topology = self.topology
        options = {"directory": str(self.directory), "batch_s": topology.batch_s}
        return {
            "redis_url": self.proxies["routers"].url,
            "models": {
                MODEL: {
                    "engine": {"kind": "custom", "target": "chaos.served_engine:ServedEngine", "options": options},
                    "pools": [{"name": "cpu", "replicas": topology.replicas, "cpus": 0.5}],
                    "batching": {"max_jobs": topology.batch_jobs},
                    "limits": {"retention_s": topology.retention_s, "lane_capacity": topology.lane_capacity},
                    "call_timeout_s": topology.call_timeout_s,
                }
            },
            "router": {"replicas": topology.routers, "cpus": 0.5},
        }

    async def _stop_service(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            await asyncio.get_running_loop().run_in_executor(self._ray, service.__exit__, None, None, None)
        if self._nodes is not None:
            del os.environ["RAY_ADDRESS"]
            await asyncio.get_running_loop().run_in_executor(self._ray, self._nodes.close)
        self._ray.shutdown()
        self._quiet.close()

    async def kill_node(self, number: int) -> str:
        """Kill a Ray node; returns who died with it, or "" if it is left alone since nobody of ours is there yet."""
        assert self._nodes is not None
        family = set(self._nodes.family(number))
        victims = [f"{role}-{pid}" for role in _TITLES for pid in self.pids(role) if pid in family]
        if victims:
            await asyncio.to_thread(self._nodes.kill, number)
        return " ".join(victims)

    def life_of(self, name: str) -> str:
        """One of the actors that there are now; a life is its role and its process."""
        role, _, number = name.partition("-")
        if role == "producer":
            return super().life_of(name)
        pids = self.pids(role)
        return f"{role}-{pids[int(number) % len(pids)]}" if pids else ""

    def signal(self, life: str, number: signal.Signals) -> bool:
        """Send a signal to an actor's process."""
        role, _, pid = life.partition("-")
        if role == "producer":
            return super().signal(life, number)
        if int(pid) not in self.pids(role):
            return False
        os.kill(int(pid), number)
        return True

    def pids(self, role: str) -> list[int]:
        """The processes of an actor class, among all that this process has started."""
        if role == "producer":
            return super().pids(role)
        return sorted(pid for pid in family_of(os.getpid()) if _title(pid).startswith(_TITLES[role]))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").rstrip("\0 ")
    except OSError:
        return ""
