"""A short run of everything at once; `make chaos` and `make soak` are the long ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.__main__ import main
from chaos.island import can_make_islands
from chaos.plan import FaultKind
from chaos.report import figures_of, line, summary
from chaos.scenario import run_scenario
from chaos.scenarios import PARTITIONS, short_mix

SEED = 11


@pytest.mark.slow
async def test_nothing_is_lost_and_nothing_doubled_whatever_is_done(tmp_path: Path) -> None:
    outcome = await run_scenario(short_mix(8.0), seed=SEED, keep=tmp_path)

    assert outcome.violations == []
    figures = figures_of(outcome)
    assert figures.acknowledged == figures.answered > 1000
    assert figures.lost == figures.doubled == 0
    assert figures.redis_kills >= 2
    assert figures.router_kills >= 2
    assert figures.replica_kills >= 2
    assert figures.dropped_replies >= 5
    assert figures.audits > 10
    assert len(outcome.done) > len(short_mix(8.0).faults) - 3, "some may have found nobody there"

    told = summary([outcome], mode="test", seed=SEED, server="", duration_s=outcome.duration_s)
    assert json.loads(json.dumps(told))["lost"] == 0
    assert "LOST 0 dup 0" in line(outcome)


@pytest.mark.slow
@pytest.mark.skipif(not can_make_islands(), reason="may not create network namespaces here")
async def test_nothing_is_lost_when_networks_are_partitioned(tmp_path: Path) -> None:
    short = replace(PARTITIONS, faults={FaultKind.PARTITION: 3}, faults_s=5.0, calm_s=1.0)
    outcome = await run_scenario(short, seed=SEED, keep=tmp_path)

    assert outcome.violations == []
    assert outcome.done[FaultKind.PARTITION] == 3
    figures = figures_of(outcome)
    assert figures.acknowledged == figures.answered > 100
    assert figures.lost == figures.doubled == 0


def test_a_scenario_that_a_mode_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that tries nothing finds nothing, and would look like a good one."""
    with pytest.raises(SystemExit) as ended:
        main(["--mode", "soak", "--only", "mixed"])

    assert ended.value.code == 2
    assert "soak has no scenario 'mixed'; there are soak, " in capsys.readouterr().err


def test_the_plan_can_be_seen_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--seed", "3", "--only", "mixed"]) == 0
    said = capsys.readouterr().out
    assert "kill_redis" in said
    assert said.count("\n") > 100
