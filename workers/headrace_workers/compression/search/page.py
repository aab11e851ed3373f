"""A search as a page: what was tried, what it came to, and what was chosen. One file, which asks nobody for anything.

Everything that a plot shows stands in the table, too; no meaning is in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from headrace_workers.compression.search.front import Entry, Front, write_whole
from headrace_workers.html_page import html_page

__all__ = ["report_html", "write_report"]

REPORT_FILE: Final = "report.html"

_WIDTH, _HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 48
_FEWEST_TICKS: Final = 4

_STYLE: Final = """
:root { --front: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --front: #79b8ff; } }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 28rem; }
svg text { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--line); }
.asked { stroke: var(--ink); stroke-dasharray: 6 4; }
.curve { stroke: var(--front); fill: none; stroke-width: 1.5; }
.on { fill: var(--front); stroke: var(--front); }
.off { fill: none; stroke: var(--faint); stroke-width: 1.5; }
th[scope=row] { text-align: start; }
tr.chosen th { font-weight: 700; }
.faint { color: var(--faint); }
"""


@dataclass(frozen=True)
class _Axis:
    """A quantity on a logarithmic or linear scale."""

    name: str
    of: Callable[[Entry], float]
    shown: Callable[[float], str]
    least: float
    most: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is, 0 to 1."""
        if self.logarithmic:
            value, least, most = (math.log2(number) for number in (value, self.least, self.most))
        else:
            least, most = self.least, self.most
        return (value - least) / (most - least) if most > least else 0.5

    @property
    def ticks(self) -> list[float]:
        """Round values within."""
        if self.logarithmic:
            first, last = math.floor(math.log2(self.least)), math.ceil(math.log2(self.most))
            candidates = [2.0**power for power in range(first, last + 1)]
        else:
            step = _round_step((self.most - self.least) / _FEWEST_TICKS)
            candidates = [number * step for number in range(int(self.least / step), int(self.most / step) + 2)]
        return [value for value in candidates if -1e-9 <= self.place(value) <= 1 + 1e-9]


def write_report(front: Front, folder: Path) -> Path:
    """Write the page into the front's folder; all of it appears, or nothing."""
    path = folder / REPORT_FILE
    write_whole(path, report_html(front))
    return path


def report_html(front: Front) -> str:
    """The page."""
    entries = [entry for entry in front.entries if all(map(math.isfinite, entry.point.gains))]
    body = f"""<h1>{escape(front.model)}: {escape(front.target)}</h1>
<p>{escape(_verdict(front))}</p>
<p class="faint">{escape(_circumstances(front))}</p>
{_plots(front, entries)}
{_table(front)}
{_failures(front)}"""
    return html_page(f"Search: {front.model}, {front.target}", body, style=_STYLE)


def _verdict(front: Front) -> str:
    if not front.chosen:
        return "Nothing could be measured."
    name = front.entry(front.chosen).name
    if front.met:
        return f"The target is met by “{name}”."
    return f"The target is not met. Nearest is “{name}”: {'; '.join(front.shortfalls)}."


def _circumstances(front: Front) -> str:
    ended = {
        "complete": "everything promising was tried",
        "budget": "the budget ended it; run again, it goes on",
        "interrupted": "it was interrupted; run again, it goes on",
    }
    node = front.node
    return (
        f"{len(front.entries)} candidates measured in {front.seconds:.0f} s of trials; {ended[front.ended]}. "
        f"{node.processor}, {node.threads} of {node.cores} cores, {node.isa} kernels, torch {node.torch}. "
        "Quality, speed and size are relative to the model as it came."
    )


# -- plots ----------------------------------------------------------------------------------------------------


def _plots(front: Front, entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    quality = _axis("quality kept", lambda entry: entry.point.quality, _percent, entries)
    speed = _axis("times as fast", lambda entry: entry.point.speed, _times, entries, logarithmic=True)
    size = _axis("size on disk", lambda entry: entry.point.size, _percent, entries, logarithmic=True)
    return f'<div class="plots">{_plot(front, entries, speed, quality)}{_plot(front, entries, size, quality)}</div>'


def _axis(
    name: str,
    of: Callable[[Entry], float],
    shown: Callable[[float], str],
    entries: Sequence[Entry],
    *,
    logarithmic: bool = False,
) -> _Axis:
    """An axis with a little room around what was measured."""
    values = [of(entry) for entry in entries if not logarithmic or of(entry) > 0] or [1.0]
    low, high = min(values), max(values)
    if logarithmic:
        return _Axis(name, of, shown, low / 1.2, high * 1.2, logarithmic=True)
    room = max((high - low) * 0.1, 0.005)
    return _Axis(name, of, shown, low - room, high + room)


def _plot(front: Front, entries: Sequence[Entry], across: _Axis, up: _Axis) -> str:
    title = f"{up.name} against {across.name}"
    drawn = [entry for entry in entries if not across.logarithmic or across.of(entry) > 0]
    best = sorted((entry for entry in drawn if entry.on_front), key=across.of)
    marks = "".join(_mark(front, entry, across, up) for entry in drawn)
    return f"""<figure>
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">
<title>{escape(title)}</title>
<desc>Each mark is a candidate; the table below has the same figures. Filled ones are on the front.</desc>
{_grid(across, up)}
<polyline class="curve" points="{" ".join(_xy(entry, across, up) for entry in best)}"/>
{marks}
</svg>
<figcaption>{escape(title)}. Filled: on the front. Hollow: beaten by another. Square: chosen.</figcaption>
</figure>"""


def _grid(across: _Axis, up: _Axis) -> str:
    lines = []
    for value in across.ticks:
        x = _x(across.place(value))
        lines.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        lines.append(
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{escape(across.shown(value))}</text>'
        )
    for value in up.ticks:
        y = _y(up.place(value))
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(up.shown(value))}</text>')
    lines.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across.name)}</text>'
    )
    return "\n".join(lines)


def _mark(front: Front, entry: Entry, across: _Axis, up: _Axis) -> str:
    x, y = _xy(entry, across, up).split(",")
    kind = "on" if entry.on_front else "off"
    told = f"<title>{escape(entry.name)}: {_percent(entry.point.quality)}, {_times(entry.point.speed)}, "
    told += f"{_percent(entry.point.size)}</title>"
    if entry.key == front.chosen:
        side = 12
        return (
            f'<rect class="{kind}" x="{float(x) - side / 2}" y="{float(y) - side / 2}" width="{side}" height="{side}">'
            f"{told}</rect>"
        )
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="5">{told}</circle>'


def _xy(entry: Entry, across: _Axis, up: _Axis) -> str:
    return f"{_x(across.place(across.of(entry)))},{_y(up.place(up.of(entry)))}"


def _x(place: float) -> float:
    return round(_LEFT + place * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(place: float) -> float:
    return round(_HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM), 1)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


# -- tables ---------------------------------------------------------------------------------------------------

_COLUMNS: Final = (
    "candidate",
    "on the front",
    "quality kept",
    "times as fast",
    "size",
    "tried with",
    "behind the service",
    "p50 / p99",
)


def _table(front: Front) -> str:
    ordered = sorted(front.entries, key=lambda entry: (not entry.on_front, -entry.figures.get("speed", 0.0)))
    head = "".join(f'<th scope="col">{column}</th>' for column in _COLUMNS)
    rows = "\n".join(_row(entry, chosen=entry.key == front.chosen) for entry in ordered)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="candidates">
<table><caption>All candidates</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(entry: Entry, *, chosen: bool) -> str:
    point = entry.point
    cells = (
        "yes" if entry.on_front else "no",
        _percent(point.quality),
        _times(entry.figures.get("speed", math.nan)),
        _percent(point.size),
        f"{entry.fidelity:.0%} of the steps",
        *_served(entry),
    )
    name = f"{entry.name} (chosen)" if chosen else entry.name
    told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr{_class(chosen)}><th scope="row">{escape(name)}</th>{told}</tr>'


def _class(chosen: bool) -> str:
    return ' class="chosen"' if chosen else ""


def _served(entry: Entry) -> tuple[str, str]:
    if entry.served is None:
        return "–", "–"
    rate = f"{entry.served.texts_per_s:,.0f} texts/s"
    if entry.served.speedup is not None:
        rate += f", {_times(entry.served.speedup)}"
    return rate, "; ".join(
        f"{load.p50_ms:.0f} / {load.p99_ms:.0f} ms at {load.share:.0%}" for load in entry.served.loads
    )


def _failures(front: Front) -> str:
    if not front.failed:
        return ""
    items = "".join(f"<li>{escape(failed.name)}: {escape(failed.reason)}</li>" for failed in front.failed)
    return f"<h2>Could not be made</h2><ul>{items}</ul>"


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "–"


def _times(value: float) -> str:
    return f"{value:.3g}×" if math.isfinite(value) else "–"
