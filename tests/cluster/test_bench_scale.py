"""`headrace bench scale`: what a job costs at each size, measured without Ray, which the other parts need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace_cluster.bench.held_processes import HeldProcesses
from headrace_cluster.bench.scale import PARTS, run_scale
from headrace_cluster.bench.scale_routing import RoutingPlan, flatness, measure_routing
from support.waiting import eventually_sync


def test_a_job_costs_about_the_same_at_every_size() -> None:
    """Three sizes, a hundredth of what the command measures. Only counts are compared: CPU time is the machine's."""
    said: list[str] = []
    plan = RoutingPlan(jobs=256, replicas=(1, 4), models=(1, 2), waiting=(512,), rounds=1)
    report = measure_routing(plan, said.append)

    sizes = ["replicas=1,models=1,waiting=0", "replicas=4,models=1,waiting=0"]
    sizes += ["replicas=1,models=2,waiting=0", "replicas=1,models=1,waiting=512"]
    assert said == [f"routing, round 1 of 1: {size}" for size in sizes]
    assert list(report["router_cpu_us_per_job"]) == list(report["redis_ops_per_job"]) == sizes
    assert all(cost > 0 for cost in report["router_cpu_us_per_job"].values())
    assert all(1 < ops < 50 for ops in report["redis_ops_per_job"].values())
    assert 200 < report["bytes_per_waiting_job"] < 2000, "a payload of 200 bytes, and what stands beside it"
    assert all(8 < row["mean_batch_jobs"] <= 64 for row in report["sizes"])


def test_flatness_is_how_much_dearer_the_dearest_is() -> None:
    assert flatness([10.0, 11.0, 10.5]) == pytest.approx(0.1)


def test_the_parts_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each can be had alone, beside what machine it was."""
    monkeypatch.setattr("headrace_cluster.bench.scale.measure_routing", lambda plan, say: {"jobs": plan.jobs})
    report = run_scale(lambda _: None, quick=True, only="routing")
    assert report.keys() == {"jobs", "machine"}
    assert report["jobs"] == RoutingPlan.quick().jobs
    assert report["machine"]["cores"] >= 1
    assert set(PARTS) == {"replicas", "routers", "routing", "fifo", "autoscaling"}


def test_a_process_that_is_held_has_its_share_of_the_time_and_no_more() -> None:
    """Afterwards it goes on."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            eventually_sync(lambda: _cpu_s(process.pid) > 0)
            with HeldProcesses([process.pid], 0.2):
                began_s, before_s = time.monotonic(), _cpu_s(process.pid)
                eventually_sync(lambda: time.monotonic() > began_s + 0.5 and _cpu_s(process.pid) > before_s)
                share = (_cpu_s(process.pid) - before_s) / (time.monotonic() - began_s)
            assert share < 0.5
            after_s = _cpu_s(process.pid)
            eventually_sync(lambda: _cpu_s(process.pid) > after_s + 0.1)
        finally:
            process.kill()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
