"""A simulation as a page: replicas and waiting jobs over time, and the table. One file, which asks nobody for anything.

Everything in a plot is told apart by its label, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from headrace.errors import ConfigError
from headrace_cluster.simulation.figures import PolicyFigures
from headrace_cluster.simulation.report import COLUMNS, comparisons, row
from headrace_cluster.simulation.simulation import Simulation
from headrace_workers.html_page import html_page

__all__ = ["page_html", "plots_svg", "write_plot"]

_WIDTH, _HEIGHT = 920, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 96, 28, 40
_POINTS: Final = 600
"""How many points of a line are drawn at most."""
_DASHES: Final = ("", "7 3", "2 3", "8 3 2 3", "1 5")

_SVG_STYLE: Final = """
svg { color: #1b1f24; font: 12px system-ui, sans-serif; } svg text { fill: currentColor; }
.grid { stroke: #c9d1d9; } .line { fill: none; stroke: #0550ae; stroke-width: 1.5; } .other { stroke: #8b5a00; }
.title { font-weight: 600; }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; } .grid { stroke: #3a434d; } .line { stroke: #79b8ff; }
  .other { stroke: #e3b341; } }
"""
Steps = Sequence[tuple[float, int]]


def write_plot(simulation: Simulation, file: Path) -> None:
    """Write the page (`.html`) or its plots alone (`.svg`).

    Raises:
        ConfigError: the file's name ends otherwise.
        OSError: it cannot be written.
    """
    if file.suffix not in (".html", ".svg"):
        raise ConfigError(
            f"{file}: plots are written as .html or .svg, not as {file.suffix or 'a file without ending'}"
        )
    file.write_text(page_html(simulation) if file.suffix == ".html" else plots_svg(simulation), "utf-8")


def page_html(simulation: Simulation) -> str:
    """The page."""
    trace, ours = simulation.trace, simulation.ours
    verdicts = "".join(f"<li>{escape(words)}</li>" for words, _ in comparisons(simulation))
    body = f"""<h1>{escape(trace.title)}</h1>
<p>{escape(trace.about)}</p>
<p>{ours.jobs:,} jobs in {simulation.horizon_s:,.0f} s. {ours.oracle_attainment:.2%} can be answered in time at most.
headrace</p>
<ul>{verdicts}</ul>
{plots_svg(simulation)}
{_table(simulation)}"""
    return html_page(f"Simulation: {trace.title}", body)


def _table(simulation: Simulation) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in COLUMNS)
    rows = "\n".join(_row(name, figures) for name, figures in simulation.policies.items())
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="policies">
<table><caption>All policies</caption><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table></div>"""


def _row(name: str, figures: PolicyFigures) -> str:
    first, *cells = row(name, figures)
    return f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'


def plots_svg(simulation: Simulation) -> str:
    """Both plots, one above the other."""
    policies = simulation.policies
    replicas = _plot("replicas paid for", {name: f.replicas for name, f in policies.items()}, simulation.horizon_s, 0)
    waiting = _plot("jobs waiting", {name: f.waiting for name, f in policies.items()}, simulation.horizon_s, _HEIGHT)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {2 * _HEIGHT}" role="img"
aria-label="replicas and waiting jobs over time"><style>{_SVG_STYLE}</style>
<title>Replicas and waiting jobs over time</title>
{replicas}
{waiting}
</svg>"""


def _plot(title: str, lines: dict[str, Steps], horizon_s: float, down: int) -> str:
    until_s = horizon_s or max((steps[-1][0] for steps in lines.values() if steps), default=1.0)
    most = max((count for steps in lines.values() for time_s, count in steps if time_s <= until_s), default=1) or 1
    drawn = "\n".join(
        _line(name, steps, until_s, most, number) for number, (name, steps) in enumerate(lines.items()) if steps
    )
    return f"""<g transform="translate(0 {down})"><text class="title" x="{_LEFT}" y="18">{escape(title)}</text>
{_grid(until_s, most)}
{drawn}
</g>"""


def _grid(until_s: float, most: float) -> str:
    parts = []
    for value in _ticks(most):
        y = _y(value, most)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:,.0f}</text>')
    for value in _ticks(until_s):
        x = _x(value, until_s)
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:,.0f} s</text>')
    return "\n".join(parts)


def _line(name: str, steps: Steps, until_s: float, most: float, number: int) -> str:
    kept = [step for step in _thinned(steps, until_s) if step[0] <= until_s]
    points, before = [], kept[0][1]
    for time_s, count in kept:
        x = _x(time_s, until_s)
        points.append(f"{x},{_y(before, most)} {x},{_y(count, most)}")
        before = count
    points.append(f"{_x(until_s, until_s)},{_y(before, most)}")
    label_y = _TOP + 14 * (number + 1)
    kind = "line" if number == 0 else "line other"
    dashes = f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number else ""
    x = _WIDTH - _RIGHT + 8
    return (
        f'<polyline class="{kind}"{dashes} points="{" ".join(points)}"/>'
        f'<line class="{kind}"{dashes} x1="{x}" x2="{x + 24}" y1="{label_y - 4}" y2="{label_y - 4}"/>'
        f'<text x="{x + 28}" y="{label_y}">{escape(name)}</text>'
    )


def _thinned(steps: Steps, until_s: float) -> Steps:
    """Of the steps that fall on one point of the plot, the highest."""
    if len(steps) <= _POINTS:
        return steps
    highest: dict[int, tuple[float, int]] = {}
    for step in steps:
        place = int(step[0] / until_s * _POINTS)
        if place not in highest or step[1] > highest[place][1]:
            highest[place] = step
    return list(highest.values())


def _ticks(most: float) -> list[float]:
    """Four or so round values, from 0."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= most / 4 * 0.999)
    return [number * step for number in range(int(most / step) + 1)]


def _x(value: float, most: float) -> float:
    return round(_LEFT + value / most * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(value: float, most: float) -> float:
    return round(_HEIGHT - _BOTTOM - value / most * (_HEIGHT - _TOP - _BOTTOM), 1)
