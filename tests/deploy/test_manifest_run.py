"""The manifests run as they are, in pods that are namespaces of this machine; and a node is lost under load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.derived import command
from deploy.kustomization import overlay
from deploy.manifest_run import WAVE
from deploy.manifests import Manifests
from support.alone import can_be_alone, run_alone


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
@pytest.mark.skipif(not can_be_alone(), reason="no network namespaces can be made here")
def test_nothing_is_lost_when_a_node_is(folder: Path) -> None:
    """A head, two CPU nodes, two GPU nodes, two Redis servers, jobs; and the spot node is gone in a moment.

    What it had in hand is answered by others, and so is all that comes later.
    """
    told = run_alone("deploy.manifest_run", folder, within_s=570)
    assert told["health"]["ready"]
    assert told["placement"] == {
        "router": ["cpu", "cpu"],
        "minilm@cpu": ["cpu", "cpu"],
        "minilm@gpu": ["gpu", "gpu-spot"],
    }
    jobs = told["audit"]["submitted"]
    assert told["audit"] == {"submitted": jobs, "ok": jobs, "lost": 0, "doubled": 0}
    assert told["answered"] == told["ok"] == jobs >= 3 * WAVE
    assert set(told["by_pod"]) == {"cpu-2", "cpu-3", "gpu-4", "gpu-spot-5"}
    living = {"cpu-2", "cpu-3", "gpu-4"}
    assert sum(told["held_by_pod"].values()) >= 1
    assert told["held_by_pod"].keys() <= living
    assert sum(told["later_by_pod"].values()) == WAVE
    assert told["later_by_pod"].keys() <= living
    assert told["health_after"]["ready"]
