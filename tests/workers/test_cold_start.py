"""How long a replica's start takes, phase by phase."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from headrace_cluster.bench import cold_start
from headrace_cluster.bench.cold_start import run_cold_start
from headrace_cluster.bench.cold_start_process import main
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.replicas.first_answer import answer_once
from headrace_workers.telemetry.cold_start import PHASES, ColdStart, phase


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    ticking = _Clock()
    monkeypatch.setattr(time, "perf_counter", ticking)
    return ticking


def test_a_phase_inside_another_is_taken_out_of_it(clock: _Clock) -> None:
    """So that all of them together are what the start took."""
    start = ColdStart()
    with start.active():
        with phase("load"):
            clock.now_s += 1
            with phase("import"):
                clock.now_s += 10
                with phase("fetch"):
                    clock.now_s += 100
            clock.now_s += 1
            with phase("import"):
                clock.now_s += 20
        with phase("pack"):
            clock.now_s += 5
    assert start.seconds == {"load": 2, "import": 30, "fetch": 100, "pack": 5}


def test_nobody_who_times_nothing_notices(clock: _Clock) -> None:
    """Engines are made without a replica, too."""
    start = ColdStart()
    with phase("load"):
        clock.now_s += 1
    assert start.seconds == {}


def test_an_engine_says_where_it_is(minilm: Path) -> None:
    """All phases but those of the process, the first answer included."""
    start = ColdStart()
    with start.active():
        engine = make_engine(EngineConfig(kind="encoder", model=str(minilm), kernels="int8"))
    answer_once(engine, start)
    assert set(start.seconds) == set(PHASES) - {"process"}
    assert min(start.seconds.values()) >= 0


def test_an_engine_that_cannot_answer_its_example_starts_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Its jobs are told so, each for itself; what it said is not logged."""

    class Quoting(EchoEngine):
        def run(self, items: Any) -> list[Any]:
            raise ValueError("a secret")

    start = ColdStart()
    answer_once(Quoting(), start)
    assert "first_answer" in start.seconds
    assert "ValueError at " in caplog.text
    assert "secret" not in caplog.text


def test_the_process_that_is_measured_tells_its_phases(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one line of JSON."""
    main(time.time() - 2.0, str(minilm))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {*PHASES, "worker_import"}
    assert told["process"] >= 2.0


def test_medians_leave_the_first_round_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose files were not in memory yet."""
    rounds = iter([100.0, 1.0, 3.0, 2.0])

    def one(_model: str) -> dict[str, float]:
        seconds = next(rounds)
        return dict.fromkeys(PHASES, seconds) | {"import": 2 * seconds, "worker_import": seconds}

    monkeypatch.setattr(cold_start, "_one", one)
    report = run_cold_start(lambda _line: None, model="m", rounds=3)
    assert report["load_s"] == 2.0
    assert report["libraries_import_s"] == 2.0
    assert report["ready_after_import_s"] == 8.0
    assert report["total_s"] == 14.0
