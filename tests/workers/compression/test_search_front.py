"""The front of a search: what is chosen of it, here and on another node."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import CompressionError
from headrace_workers.compression.search.front import choose, decide, read_front
from headrace_workers.compression.search.latency_table import LatencyTable
from headrace_workers.compression.search.study_search import search
from headrace_workers.compression.search.target import parse_target
from support.arithmetic_study import EASY, NODE, Arithmetic, ideal


def test_another_node_decides_from_the_same_front(tmp_path: Path) -> None:
    """Where int8 brings nothing, only what was cut is fast."""
    study = Arithmetic(service=False)
    target = parse_target("speed>=2x")
    front = search(study, target, tmp_path, budget_s=1000, clock=study.clock)
    uses = [use for entry in front.entries for use in entry.uses]
    elsewhere = NODE.model_copy(update={"processor": "an old one"})
    here = decide(front, target, ideal([*uses, *front.original], NODE))
    there = decide(front, target, ideal([*uses, *front.original], elsewhere, int8=1.0))
    int8 = next(entry.key for entry in front.entries if entry.name == "int8")
    assert here.speeds[int8] == pytest.approx(front.entry(int8).figures["speed"], rel=1e-3)
    assert there.speeds[int8] == pytest.approx(1.0, rel=0.01)
    assert there.chosen != int8
    assert there.node.processor == "an old one"
    assert not there.shortfalls


def test_what_is_not_in_the_table_differs_between_nodes_as_fp32_does(tmp_path: Path) -> None:
    """Twice as slow in everything is as fast, relatively: also where half of the time is attention."""
    study = Arithmetic(service=False, overhead=0.5)
    target = parse_target("speed>=1x")
    front = search(study, target, tmp_path, budget_s=1000, clock=study.clock)
    assert front.rest_ms > 0
    slow = LatencyTable(
        node=NODE,
        timings=[
            one.model_copy(update={"fp32_ms": 2 * one.fp32_ms, "int8_ms": 2 * one.int8_ms})
            for one in ideal([use for entry in front.entries for use in entry.uses] + front.original).timings
        ],
    )
    speeds = decide(front, target, slow).speeds
    assert speeds == {entry.key: pytest.approx(entry.asked["speed"], rel=1e-3) for entry in front.entries}


def test_what_was_tried_in_full_is_chosen_before_a_glimpse(tmp_path: Path) -> None:
    """And a finalist before what was never held out or served."""
    study = Arithmetic(service=False)
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    int8 = next(entry for entry in front.entries if entry.name == "int8").model_copy(update={"held_out": {}})
    better = int8.figures | {"speed": 99.0, "drop": 0.0, "size": 0.01}
    glimpse = int8.model_copy(update={"key": "glimpse", "fidelity": 0.1, "figures": better})
    final = int8.model_copy(update={"key": "final", "held_out": {"drop": 0.015}})
    other = int8.model_copy(update={"key": "other", "figures": better})
    assert choose([glimpse, int8], EASY) == int8
    assert choose([other, final], EASY) == final
    assert choose([other, int8], EASY) == other


def test_a_folder_without_a_front(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="holds no search"):
        read_front(tmp_path)
    (tmp_path / "front.json").write_text('{"schema_version": 2}')
    with pytest.raises(CompressionError, match="is not a front: "):
        read_front(tmp_path)


def test_the_nearest_is_chosen_where_none_meets(tmp_path: Path) -> None:
    study = Arithmetic(service=False)
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    fastest = max(front.entries, key=lambda entry: entry.asked["speed"])
    assert choose(front.entries, parse_target("speed>=10000x")) == fastest
