"""Traces of arrivals: read from a file, or made up the way independent users come."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from headrace.errors import CompressionDataError
from headrace_workers.compression.search.served import Arrival, poisson_trace, read_trace


def test_a_trace_is_a_file_of_lines(tmp_path: Path) -> None:
    """With texts, or with lengths where texts are nobody's business; in order, whatever the order of the lines."""
    file = tmp_path / "trace.jsonl"
    lines = [{"offset_s": 0.5, "text": "two words"}, {"offset_s": 0, "tokens": 3}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_trace(file) == [Arrival(0.0, "water water water"), Arrival(0.5, "two words")]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"text": "x"}',
        '{"offset_s": 1}',
        '{"offset_s": -1, "text": "x"}',
        '{"offset_s": NaN, "text": "x"}',
        '{"offset_s": 1, "text": " "}',
        '{"offset_s": 1, "text": 5}',
        '{"offset_s": 1, "tokens": 0}',
        '{"offset_s": 1, "tokens": 1e30}',
    ],
)
def test_a_line_that_is_no_arrival_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"offset_s": 0, "text": "fine"}\n' + line)
    with pytest.raises(CompressionDataError, match=r"trace\.jsonl:2 is no arrival"):
        read_trace(file)


def test_no_arrivals_at_all(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    with pytest.raises(CompressionDataError, match="cannot be read"):
        read_trace(file)
    file.write_text("\n")
    with pytest.raises(CompressionDataError, match="has 0 arrivals"):
        read_trace(file)


def test_poisson_arrivals() -> None:
    """At the rate that was asked for, gaps as uneven as chance makes them, the same for one seed."""
    trace = poisson_trace(["a", "b"], per_s=20, count=4000, seed=1)
    gaps = [after.offset_s - before.offset_s for before, after in pairwise(trace)]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)
    assert {arrival.text for arrival in trace} == {"a", "b"}
    assert trace == poisson_trace(["a", "b"], per_s=20, count=4000, seed=1)
    assert trace != poisson_trace(["a", "b"], per_s=20, count=4000, seed=2)
