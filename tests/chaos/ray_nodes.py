"""Ray nodes as processes of ours, so that a whole node can die: its raylet and every actor on it at one moment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import ray

from support.redis_cluster import free_ports
from support.waiting import eventually_sync

__all__ = ["RayNodes", "family_of"]

_START_S: Final = 60.0
_OBJECT_STORE_BYTES: Final = 128 << 20


class RayNodes:
    """A Ray of a head, which hosts no actors of ours, and workers, each a `ray start --block` with its family.

    Args:
        workers: how many nodes besides the head.
        cpus: that each worker offers.
        log: where they write what they say.
    """

    def __init__(self, workers: int, *, cpus: int, log: Path) -> None:
        self._cpus = cpus
        self._log = log.open("ab")
        self._folder = tempfile.mkdtemp(prefix="hr-", dir="/tmp")  # Ray's sockets leave no room for longer names
        self.address = f"{ray.util.get_node_ip_address()}:{free_ports(1)[0]}"
        port = self.address.rpartition(":")[2]
        self._head = self._start("--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={self._folder}")
        eventually_sync(lambda: _answers(self.address), within_s=_START_S)
        self._workers = [self._start_worker() for _ in range(workers)]

    def __len__(self) -> int:
        return len(self._workers)

    def family(self, number: int) -> Iterator[int]:
        """Every process of a worker node."""
        return family_of(self._workers[number].pid)

    def kill(self, number: int) -> None:
        """Kill a worker node, and start another in its place."""
        _kill(self._workers[number])
        self._workers[number] = self._start_worker()

    def close(self) -> None:
        """Kill all of them."""
        for node in (*self._workers, self._head):
            _kill(node)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", f"--num-cpus={self._cpus}")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        common = [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["RAY_AUTH_MODE"] = "disabled"  # `ray start` would ask for a token, and `ray.init` brings none
        return subprocess.Popen(
            [*command, *common, *options], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment
        )


def family_of(ancestor: int) -> Iterator[int]:
    """A process and all its living descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended as we looked
            continue
    for pid in parents:
        at = pid
        while at in parents and at != ancestor:
            at = parents[at]
        if at == ancestor:
            yield pid


def _kill(node: subprocess.Popen[bytes]) -> None:
    """Nobody of the family may live to tell, so all are stopped first."""
    family = list(family_of(node.pid))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in {*family, *family_of(node.pid)}:
            _send(pid, number)
    node.wait()


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError):
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    return False
