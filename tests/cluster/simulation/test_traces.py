"""Traces that are wrong are refused with the key's name; those that are right are drawn as they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from headrace.errors import ConfigError
from headrace_cluster.simulation.arrivals import FLOOD, draw_arrivals
from headrace_cluster.simulation.page import write_plot
from headrace_cluster.simulation.policies import POLICIES
from headrace_cluster.simulation.simulation import simulate
from headrace_cluster.simulation.trace import load_trace, parse_trace

GOOD: dict[str, Any] = {"duration_s": 100, "arrivals": {"jobs_per_s": 20}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"arivals": {}}, "arivals: there is no such key; did you mean arrivals?"),
        ({"arrivals": {"jobs_per_s": 1, "bursts": {"on": 1}}}, "arrivals.bursts.on: there is no such key"),
        ({"mix": [{"name": "a", "work": {"batch": 1}}]}, "did you mean batch_s?"),
        ({"jobs": 5}, "one of duration_s and jobs must be given"),
        ({"arrivals": {}}, "arrivals.jobs_per_s must be above 0"),
        ({"arrivals": {"jobs_per_s": 1, "recorded": "a.jsonl"}}, "a recorded trace says itself"),
        ({"pools": []}, "pools"),
        ({"pools": [{"min_replicas": 5, "max_replicas": 2}]}, "min_replicas must not be above max_replicas"),
        ({"deadlines": {"least_s": 5, "most_s": 1}}, "least_s must not be above most_s"),
        ({"work": {"batch_s": 0, "job_s": 0, "token_s": 0}}, "must be above 0"),
        ({"losses": [{"at_s": 1, "pool": "gpu"}]}, "there is no pool gpu"),
        ({"priorities": [0, 0, 0]}, "priorities must not all be 0"),
        ({"mix": [{"name": "a"}, {"name": "a"}]}, "two models have one name"),
        ({"seed": "1"}, "seed"),
    ],
)
def test_what_is_wrong_has_a_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_trace({**GOOD, **wrong}, "my.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("my.yaml: ")


def test_an_unknown_trace_is_told_of_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bursty"):
        load_trace("burstyy")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1"),
        ("[]", "must be an object"),
        ('{"tokens": 1}', "offset_s must be a number"),
        ('{"offset_s": -1, "tokens": 1}', "offset_s must be a number of at least 0"),
        ('{"offset_s": NaN, "tokens": 1}', "offset_s must be a number"),
        ('{"offset_s": 0, "tokens": 0}', "tokens must be a number of at least 1"),
        ('{"offset_s": 0, "tokens": 1, "size": 2}', "there is no such key: size"),
        ('{"offset_s": 0, "tokens": 1, "deadline_s": 0}', "deadline_s must be a number above 0"),
        ('{"offset_s": 0, "tokens": 1, "priority": "urgent"}', "priority must be one of high, normal, low"),
        ('{"offset_s": 0, "tokens": 1, "model": "other"}', "the trace has no model 'other'"),
    ],
)
def test_a_recorded_line_that_is_wrong_has_a_number(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "arrivals.jsonl").write_text(line + "\n", "utf-8")
    (tmp_path / "trace.yaml").write_text("arrivals: {recorded: arrivals.jsonl}\n", "utf-8")
    with pytest.raises(ConfigError, match="line 1") as caught:
        draw_arrivals(load_trace(tmp_path / "trace.yaml"))
    assert words in str(caught.value)


def test_a_recorded_file_is_replayed(tmp_path: Path) -> None:
    """In the order of the offsets, whatever the order of the lines."""
    lines = ['{"offset_s": 2, "tokens": 7, "tenant": "b", "deadline_s": 3}', '{"offset_s": 1, "tokens": 5}']
    (tmp_path / "arrivals.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "trace.yaml").write_text("arrivals: {recorded: arrivals.jsonl}\n", "utf-8")
    [arrivals] = draw_arrivals(load_trace(tmp_path / "trace.yaml"))
    assert arrivals.offset_s.tolist() == [1, 2]
    assert arrivals.tokens.tolist() == [5, 7]
    assert arrivals.deadline_s.tolist() == [np.inf, 5]
    assert [arrivals.tenants[n] for n in arrivals.tenant] == ["", "b"]


def test_arrivals_are_what_the_trace_says() -> None:
    """The mean rate, whatever the bursts and tides; the sizes' median; and the flood where it belongs."""
    content = {
        "duration_s": 20_000,
        "arrivals": {
            "jobs_per_s": 5,
            "bursts": {"on_s": 20, "off_s": 40, "quiet": 0.1},
            "tide": {"period_s": 1000, "swing": 0.5},
            "flood": {"jobs_per_s": 10, "from_s": 100, "to_s": 200},
        },
        "sizes": {"kind": "pareto", "median": 50, "alpha": 1.5},
    }
    [arrivals] = draw_arrivals(parse_trace(content))
    flood = np.array([arrivals.tenants[n] == FLOOD for n in arrivals.tenant])
    assert (~flood).sum() == pytest.approx(5 * 20_000, rel=0.1)
    assert flood.sum() == pytest.approx(1000, rel=0.15)
    assert arrivals.offset_s[flood].min() >= 100
    assert arrivals.offset_s[flood].max() <= 200
    assert np.median(arrivals.tokens) == pytest.approx(50, rel=0.05)
    assert (np.diff(arrivals.offset_s) >= 0).all()
    per_s = np.bincount(arrivals.offset_s[~flood].astype(int))
    assert per_s.var() > 2 * per_s.mean(), "burstier than Poisson"


def test_plots_are_html_or_svg(tmp_path: Path) -> None:
    simulation = simulate(parse_trace({**GOOD, "title": "<b>"}), policies=POLICIES[:2], processes=1)
    for name in ("page.html", "plots.svg"):
        write_plot(simulation, tmp_path / name)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<polyline") == 4
    assert (tmp_path / "plots.svg").read_text("utf-8").startswith("<svg")
    with pytest.raises(ConfigError, match=r"\.html or \.svg"):
        write_plot(simulation, tmp_path / "plots.png")


def test_the_documents_example_is_a_trace() -> None:
    """docs/simulation.md shows every part of one."""
    text = (Path(__file__).parents[3] / "docs" / "simulation.md").read_text("utf-8")
    [example] = re.findall(r"^```yaml trace\n(.*?)^```$", text, re.M | re.S)
    trace = parse_trace(yaml.safe_load(example))
    assert trace.losses[0].at_s == 1200
    assert [pool.speed for pool in trace.pools] == [1, 10]
