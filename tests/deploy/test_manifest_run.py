"""The manifests run as they are, in pods that are namespaces of this machine; and a node is lost under load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.derived import command
from deploy.kustomization import overlay
from deploy.manifest_run import JOBS
from deploy.manifests import Manifests

_AS_ROOT: Final = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
ALONE: Final = ["unshare", *_AS_ROOT, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _namespaces() -> bool:
    """Whether this machine lets us make them, and has the tools."""
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip", "wget")):
        return False
    return subprocess.run([*ALONE, "ip", "link", "add", "pods0", "type", "bridge"], capture_output=True).returncode == 0


def test_what_the_operator_makes_of_a_group() -> None:
    """The command of a pod, from resources, labels and parameters."""
    manifests = Manifests(overlay("gpu-spot"))
    assert command(manifests, manifests.head) == (
        "ulimit -n 65536; ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 "
        "--memory=8589934592 --metrics-export-port=8080 --no-monitor --num-cpus=0 --object-store-memory=536870912 "
        "--redis-password=$REDIS_PASSWORD"
    )
    assert command(manifests, manifests.groups[2]) == (
        "ulimit -n 65536; ray start --address=headrace-head-svc.headrace.svc.cluster.local:6379 --block "
        "--dashboard-agent-listen-port=52365 --labels=headrace.io/capacity=spot,headrace.io/pool=gpu "
        "--memory=17179869184 --metrics-export-port=8080 --num-cpus=4 --num-gpus=1 --object-store-memory=536870912"
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """For everything the run writes."""
    made = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not _namespaces(), reason="no network namespaces can be made here")
def test_nothing_is_lost_when_a_node_is(folder: Path) -> None:
    """A head, two CPU nodes, two GPU nodes, two Redis servers, jobs; and the spot node is gone in a moment."""
    told = run(folder)
    assert told["health"]["ready"]
    assert told["placement"] == {
        "router": ["cpu", "cpu"],
        "minilm@cpu": ["cpu", "cpu"],
        "minilm@gpu": ["gpu", "gpu-spot"],
    }
    assert (told["answered"], told["ok"]) == (JOBS, JOBS)
    assert set(told["by_pod"]) == {"cpu-2", "cpu-3", "gpu-4", "gpu-spot-5"}
    assert told["by_pod"]["gpu-spot-5"] < JOBS / 4, "it went on though it was killed"
    assert told["audit"] == {"submitted": JOBS, "ok": JOBS, "lost": 0, "doubled": 0}
    assert told["health_after"]["ready"]


def run(folder: Path) -> dict[str, Any]:
    """The run, in namespaces of its own: whatever becomes of it, nothing of it stays."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for name in [name for name in environment if name.startswith(("RAY_", "HEADRACE_"))]:
        del environment[name]
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "deploy.manifest_run", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    logs = "\n".join(f"--- {log.parent.name}\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*/log")))
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{logs}"
    told: dict[str, Any] = json.loads(done.stdout)
    print(told)
    return told
