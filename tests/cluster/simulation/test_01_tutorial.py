"""The simulator, one idea a test, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_cluster.simulation.figures import PolicyFigures
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.report import to_json
from headrace_cluster.simulation.simulation import Simulation, simulate
from headrace_cluster.simulation.trace import load_trace, parse_trace, shipped_traces

ONE_SECOND_A_JOB = {"batch_s": 0.0, "job_s": 1.0, "token_s": 0.0}
ONE_BY_ONE = {"max_jobs": 1, "linger_ms": 0}


def run(content: dict[str, Any]) -> Simulation:
    """In this process."""
    return simulate(parse_trace({"overhead_s": 0, **content}), processes=1)


def recorded(tmp_path: Any, *lines: str) -> dict[str, Any]:
    """Arrivals from a file of these lines."""
    file = tmp_path / "arrivals.jsonl"
    file.write_text("\n".join(lines), "utf-8")
    return {"recorded": str(file)}


def test_three_jobs_on_one_replica(tmp_path: Any) -> None:
    """They come at once and take a second each: one after the other, the last of them too late."""
    lines = ['{"offset_s": 0, "tokens": 1, "deadline_s": 2.5}'] * 3
    ours = run({"arrivals": recorded(tmp_path, *lines), "work": ONE_SECOND_A_JOB, "batching": ONE_BY_ONE}).ours
    assert ours.answered == 2 + 1, "the third was with its replica before its deadline had passed"
    assert ours.deadline_attainment == pytest.approx(2 / 3)
    assert ours.oracle_attainment == pytest.approx(2 / 3)
    assert ours.latency_p99_s == pytest.approx(3.0, abs=0.05)
    assert ours.cost == pytest.approx(3.0), "one replica for three seconds"
    assert ours.cost_over_oracle == pytest.approx(3 / 2), "of which two were of use"
    assert ours.utilisation == pytest.approx(1.0)


def test_jobs_share_a_batch(tmp_path: Any) -> None:
    """A batch takes a tenth of a second, and each job a hundredth more: eight jobs together take 0.18 s."""
    work = {"batch_s": 0.1, "job_s": 0.01, "token_s": 0.0}
    lines = ['{"offset_s": 0, "tokens": 1}'] * 8
    simulation = run({"arrivals": recorded(tmp_path, *lines), "work": work, "batching": {"max_jobs": 8}})
    fifo = simulation.policies["fifo"]
    assert fifo.batches == 1
    assert fifo.latency_p50_s == pytest.approx(0.18)


def test_padding_is_counted(tmp_path: Any) -> None:
    """Of a batch of 1 and 9 tokens, padded to 9 each, 8 of 18 are for nothing."""
    lines = ['{"offset_s": 0, "tokens": 1}', '{"offset_s": 0, "tokens": 9}']
    batching = {"max_jobs": 2, "padded": True}
    simulation = run({"arrivals": recorded(tmp_path, *lines), "batching": batching})
    assert simulation.policies["fifo"].padding == pytest.approx(8 / 18)


def test_replicas_are_paid_for_from_the_decision_on() -> None:
    """A burst on one replica: more are started, which cost before they work, and go again."""
    content = {
        "duration_s": 200,
        "arrivals": {"jobs_per_s": 4, "bursts": {"on_s": 20, "off_s": 60, "quiet": 0.0}},
        "work": ONE_SECOND_A_JOB,
        "batching": ONE_BY_ONE,
        "pools": [{"min_replicas": 1, "max_replicas": 50, "start_up_s": 5}],
    }
    ours = run(content).ours
    assert ours.replicas_peak > 5
    assert ours.deadline_attainment == 1
    assert ours.replicas[-1][1] == 0, "nobody is paid for when all is over"
    assert ours.utilisation < 1


def test_every_trace_that_comes_with_headrace_is_valid() -> None:
    """And says what it is about."""
    names = shipped_traces()
    assert {"bursty", "heavy_tailed", "diurnal", "tenant_flood", "node_loss", "thousand"} <= set(names)
    for name in names:
        trace = load_trace(name)
        assert trace.title
        assert trace.about


def test_the_report_has_what_is_promised() -> None:
    """The names that programs read."""
    report = to_json(run({"jobs": 50, "arrivals": {"jobs_per_s": 10}}))
    promised = {"jobs", "replicas", "seconds", "deadline_attainment", "oracle_attainment", "cost_over_oracle"}
    assert promised <= set(report)
    assert set(report["policies"]) == {policy.name for policy in POLICIES}
    assert report["jobs"] == 50
    assert all(promised - {"jobs", "replicas", "seconds"} <= set(figures) for figures in report["policies"].values())
    assert isinstance(run({"jobs": 5, "arrivals": {"jobs_per_s": 10}}).ours, PolicyFigures)
