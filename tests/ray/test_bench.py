"""The benchmarks and the demo, short: each prints as its last line one JSON object with the figures it promises.

How fast they are is not looked at here; that the figures fit together is.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.output import Exit
from headrace_cluster.corpus import reference_texts
from support.command_line import HEADRACE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]  # a fixture may be a whole benchmark

Report = dict[str, Any]
PEER = '#!/bin/sh\necho "starting"\necho "{\\"jobs_per_s\\": 12.5, \\"program\\": \\"$1\\"}"\n'
TEXTS = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """Runs a command with `--json`, and gives the object in its last line."""
    folder = tmp_path_factory.mktemp("bench")
    environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_REDIS_URL"}

    def headrace(*arguments: str | Path) -> Report:
        done = subprocess.run(
            [HEADRACE, *arguments, "--json"], capture_output=True, text=True, cwd=folder, env=environment, check=False
        )
        assert done.returncode == Exit.DONE, done.stderr[-2000:]
        report: Report = json.loads(done.stdout.splitlines()[-1])
        return report

    return headrace


@pytest.fixture(scope="module")
def transport(run: Callable[..., Report], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """With one peer, whose environment holds a program that says what a peer would say."""
    peers = tmp_path_factory.mktemp("peers")
    python = peers / "celery" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PEER)
    python.chmod(0o755)
    return run("bench", "transport", "--quick", "--peers", peers)


@pytest.fixture(scope="module")
def e2e(run: Callable[..., Report], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """On texts of its user's."""
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n\n".join(reference_texts(TEXTS)) + "\n  \n", "utf-8")
    return run("bench", "e2e", "--quick", "--texts", file)


@pytest.fixture(scope="module")
def kernels(run: Callable[..., Report]) -> Report:
    return run("bench", "kernels", "--quick")


@pytest.fixture(scope="module")
def generate(run: Callable[..., Report]) -> Report:
    """Through the whole system; what stands beside peers is tested in tests/cluster/test_bench_generate.py."""
    return run("bench", "generate", "--quick", "--only", "system")


@pytest.fixture(scope="module")
def demo(run: Callable[..., Report]) -> Report:
    return run("demo", "--texts", str(TEXTS))


def positive(report: Report, *names: str) -> None:
    """All of them are there, and are numbers above zero."""
    wrong = {name: report.get(name) for name in names if not (report.get(name) or 0) > 0}
    assert wrong == {}


def is_ratio(ratio: float, one: float, other: float) -> None:
    assert math.isclose(ratio, one / other, rel_tol=0.01)


def test_transport_against_the_floor(transport: Report) -> None:
    """Headrace and the floor in one run, and what else is measured of it."""
    positive(transport, "jobs_per_s", "floor_jobs_per_s", "always_jobs_per_s", "batch1_jobs_per_s")
    is_ratio(transport["ratio_to_floor"], transport["jobs_per_s"], transport["floor_jobs_per_s"])
    positive(transport, "router_cpu_us_per_job", "mean_batch")
    assert (transport["lost"], transport["doubled"]) == (0, 0)


def test_transport_of_a_lone_job(transport: Report) -> None:
    """In milliseconds, and what is left when the engine's own time is taken off."""
    assert 0 < transport["lone_over_inprocess_p50_ms"] < transport["lone_p50_ms"] <= transport["lone_p99_ms"]


def test_transport_against_peers(transport: Report) -> None:
    """Of those whose environments are there, by way of the floor that was measured beside each."""
    assert transport["peers_jobs_per_s"] == {"celery": 12.5}
    is_ratio(transport["ratio_to_best_peer"], transport["ratio_to_floor"], transport["peers_ratio_to_floor"]["celery"])


@pytest.mark.long
def test_e2e_against_its_limit_and_its_neighbours(e2e: Report) -> None:
    """Each rate with the layout that it was reached in."""
    ours = e2e["texts_per_s"]
    is_ratio(e2e["ratio_to_limit"], ours, e2e["limit_texts_per_s"])
    is_ratio(e2e["speedup_over_fp32_padded"], ours, e2e["fp32_padded_texts_per_s"])
    is_ratio(e2e["speedup_over_serve_batch"], ours, e2e["serve_batch_texts_per_s"])
    assert (e2e["layout"], e2e["limit_layout"], e2e["serve_batch_layout"]) == ("2x1", "2x1 packed", "2x1")


@pytest.mark.long
def test_e2e_on_a_file_of_texts(e2e: Report) -> None:
    """One a line; blank ones are none. All are answered, and the answers are those of fp32."""
    assert e2e["texts"] == TEXTS
    assert (e2e["lost"], e2e["doubled"]) == (0, 0)
    assert e2e["cosine_mean"] >= 0.99
    assert e2e["cosine_min"] >= 0.97
    assert 0 < e2e["padding_avoided"] < 1
    assert 0 < e2e["p50_ms"] <= e2e["p99_ms"]


def test_kernels_by_shape(kernels: Report) -> None:
    """A row for each shape and length; what int8 is used for gains by it."""
    shapes = {(row["k"], row["n"]) for row in kernels["rows"]}
    lengths = {row["m"] for row in kernels["rows"]}
    assert shapes == {(384, 384), (384, 1536), (1536, 384)}
    assert len(kernels["rows"]) == len(shapes) * len(lengths) >= 9
    for row in kernels["rows"]:
        positive(row, "fp32_ms", "kernel_ms", "speedup")
    used = [row for row in kernels["rows"] if row["kernel"] != "fp32"]
    assert kernels["worst_speedup"] == min((row["speedup"] for row in used), default=None)
    large = [row["speedup"] for row in used if row["m"] >= 256]
    assert kernels["worst_speedup_m256"] == min(large, default=None)


@pytest.mark.long
def test_generate_through_the_system(generate: Report) -> None:
    """In one piece, streamed, and alone; nothing is lost."""
    positive(generate, "system_tokens_per_s", "system_ratio_to_engine", "streamed_tokens_per_s")
    assert generate["stream_overhead_ratio"] < 1
    positive(generate, "ttft_ms", "chunk_gap_p50_ms")
    assert generate["ttft_over_engine_ms"] < generate["ttft_ms"]
    p50_ms, p99_ms = generate["chunk_gap_p50_ms"], generate["chunk_gap_p99_ms"]
    is_ratio(generate["chunk_gap_p99_over_median"], p99_ms, p50_ms)
    assert (generate["lost"], generate["doubled"]) == (0, 0)


def test_demo(demo: Report) -> None:
    """Real texts through `headrace batch`: all answered, once, as fp32 would; and neighbours for a person to judge."""
    assert (demo["texts"], demo["submitted"], demo["finished"]) == (TEXTS, TEXTS, TEXTS)
    assert (demo["lost"], demo["doubled"]) == (0, 0)
    positive(demo, "texts_per_s", "batches", "padding_avoided")
    assert demo["cosine_mean"] >= 0.99
    assert [row["query"][:6] for row in demo["neighbours"]] == ["How do", "What h", "Compar"]
    assert all(row["nearest"] and row["cosine"] > 0.2 for row in demo["neighbours"])
    assert (demo["prompts"], demo["prompts_answered"]) == (5, 5)
    assert (demo["prompts_lost"], demo["prompts_doubled"]) == (0, 0)


@pytest.mark.long
def test_what_metrics_cost(run: Callable[..., Report]) -> None:
    """Two whole services side by side, and the same jobs through both."""
    report = run("bench", "observability", "--quick")
    positive(report, "transport_jobs_per_s", "transport_jobs_per_s_without", "e2e_jobs_per_s", "e2e_jobs_per_s_without")
    for part in ("transport", "e2e"):
        costs = sorted(map(float, report[f"{part}_costs"].split()))
        assert len(costs) == report["rounds"]
        assert costs[0] - 0.001 <= report[f"{part}_cost"] <= costs[-1] + 0.001


@pytest.mark.long
def test_half_of_the_weights_set_to_zero(run: Callable[..., Report]) -> None:
    """The file shrinks and gives every bit back; nothing gets faster, and the report says so."""
    report = run("bench", "compression", "--quick", "--only", "sparse")
    assert report["sparse50_size_ratio"] <= 0.56
    assert report["sparse50_bitwise"] is True
    assert "no faster" in report["sparse50_says"]
