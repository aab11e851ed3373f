"""`headrace simulate`, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli import main

TRACE = "duration_s: 30\narrivals: {jobs_per_s: 10}\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A short one."""
    file = tmp_path / "trace.yaml"
    file.write_text(TRACE, "utf-8")
    return file


def test_a_table_and_a_page(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(trace), "--plot", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("headrace", "serve", "oracle"))
    assert (tmp_path / "page.html").exists()


def test_json_is_one_object(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(trace), "--json", "--only", "serve", "--seed", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["policies"]) == {"headrace", "serve"}
    assert report["oracle_attainment"] >= report["deadline_attainment"]


def test_what_comes_with_headrace_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--list", "--json"]) == 0
    assert "bursty" in {json.loads(line)["trace"] for line in capsys.readouterr().out.splitlines()}


def test_what_is_wrong_is_said(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_text(TRACE + "sede: 1\n", "utf-8")
    assert main(["simulate", str(trace)]) == 2
    assert "did you mean seed?" in capsys.readouterr().err
    assert main(["simulate"]) == 2
    trace.write_text(TRACE, "utf-8")
    assert main(["simulate", str(trace), "--only", "servee"]) == 2
    assert main(["simulate", str(trace), "--plot", str(tmp_path / "a.png")]) == 2


def test_several_seeds_are_a_row_each_and_a_summary(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, only the summary."""
    asked = ["simulate", str(trace), "--seeds", "2", "--only", "serve"]
    assert main([*asked, "--json"]) == 0
    first, second, report = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["seed"], second["seed"], report["seeds"]] == [1, 2, [1, 2]]
    assert main(asked) == 0
    assert "with 2 seeds, from 1 on" in capsys.readouterr().out
    assert main([*asked, "--plot", "plot.svg"]) == 2
