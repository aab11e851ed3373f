"""What happens to Ray clusters in production, done to real ones: nothing is lost or doubled, and who goes on is said.

Each runs in namespaces of its own, and prints what it measured (`pytest -s`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drills.node_autoscaling import JOBS
from support.alone import can_be_alone, run_alone

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(720),
    pytest.mark.skipif(not can_be_alone(), reason="no namespaces can be made here"),
]

WITHIN_S = 700.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """For everything a run writes. Its path is short, since sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_a_gpu_node_comes_and_goes(folder: Path) -> None:
    """Asked for by a job, drained when there is none; and one that dies under load is replaced, without a loss."""
    told = run_alone("drills.node_autoscaling", folder, within_s=WITHIN_S)
    assert told["nodes_at_first"] == 0
    assert told["went_because"] == "AUTOSCALER_DRAIN_IDLE"
    assert told["unanswered_at_the_kill"] > JOBS / 4, "it was killed when there was nothing to do"
    assert told["answered"] == JOBS
    assert told["deaths"].count("UNEXPECTED_TERMINATION") == 1
    assert set(told["deaths"]) == {"UNEXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE"}
    assert told["audit"] == {"submitted": JOBS + 1, "ok": JOBS + 1, "lost": 0, "doubled": 0}


def test_the_head_is_lost(folder: Path) -> None:
    """Jobs go on without it, and with one replica less; the new head manages what it finds."""
    told = run_alone("drills.head_loss", folder, within_s=WITHIN_S)
    assert told["replicas_without_head"] == 2
    assert told["answered_by_the_dead"] == 0
    jobs = told["answered"]
    assert told["audit"] == {"submitted": jobs, "ok": jobs, "lost": 0, "doubled": 0}


def test_a_new_release_takes_over(folder: Path) -> None:
    """A second cluster with other code on the same Redis: it reads when it can, and the old one is deleted."""
    told = run_alone("drills.new_release", folder, within_s=WITHIN_S)
    assert min(told["by_release"].values()) > 0
    assert told["old_after_deletion"] == 0
    jobs = told["answered"]
    assert told["audit"] == {"submitted": jobs, "ok": jobs, "lost": 0, "doubled": 0}
