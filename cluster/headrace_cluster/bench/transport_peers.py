"""The peers of `bench transport`: queues with results, each in an environment of its own, in turn with the floor.

They are measured while our service is down, when the machine may be faster or slower than it was for us. The floor is
measured right before each of them as well, and it is the ratio to that which is compared with ours.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from headrace_cluster.bench.floor import measure_floor
from headrace_cluster.embedded import EmbeddedServer

__all__ = ["Peer", "PeerLoad", "measure_peers"]

_PEERS: Final = ("celery", "arq", "taskiq")
_TIMEOUT_S: Final = 180.0


class PeerLoad(NamedTuple):
    """What a peer is given, and how often."""

    jobs: int
    floor_jobs: int
    payload_bytes: int
    rounds: int


class Peer(NamedTuple):
    """Medians of the rounds."""

    jobs_per_s: float
    ratio_to_floor: float


def measure_peers(environments: Path, load: PeerLoad, progress: Callable[[str], None]) -> dict[str, Peer]:
    """Those that have an environment, by name.

    Args:
        environments: a folder with a virtual environment for each, as `make peers` makes it.
        load: how much.
        progress: is told what is being done.

    Raises:
        RuntimeError: a peer failed; with what it said last.
    """
    found: dict[str, list[Peer]] = {}
    for number in range(load.rounds):
        for name in _PEERS:
            python = environments.absolute() / name / "bin" / "python"
            if python.exists():
                progress(f"peer {name}, round {number + 1} of {load.rounds}")
                found.setdefault(name, []).append(_measure(name, python, load))
    return {name: Peer(*map(statistics.median, zip(*rounds, strict=True))) for name, rounds in found.items()}


def _measure(name: str, python: Path, load: PeerLoad) -> Peer:
    program = Path(__file__).parent / "peers" / f"{name}_peer.py"
    with EmbeddedServer(die_with_parent=True, port=_free_port()) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        floor = measure_floor(url, jobs=load.floor_jobs, payload_bytes=load.payload_bytes)
        done = subprocess.run(
            [python, program, url, str(load.jobs), str(load.payload_bytes)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-1500:]}")
    rate = float(json.loads(done.stdout.splitlines()[-1])["jobs_per_s"])
    return Peer(rate, rate / floor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
