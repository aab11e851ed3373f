"""The result of a search, as it is kept: every candidate's figures, the front among them, and what was chosen.

It holds what is needed to decide again on another node without training anything: the shapes of each candidate's
layers, and how fast it was where it was measured.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import CompressionError
from headrace_workers.compression.recipe import Recipe
from headrace_workers.compression.search import pareto
from headrace_workers.compression.search.latency_table import LatencyTable, LinearUse, Node
from headrace_workers.compression.search.pareto import Point
from headrace_workers.compression.search.served import ServedFigures
from headrace_workers.compression.search.target import Target

__all__ = ["Decision", "Ended", "Entry", "Failed", "Front", "choose", "decide", "read_front", "write_whole"]

FRONT_FILE: Final = "front.json"
_MOST_BYTES: Final = 64 << 20

Ended = Literal["complete", "budget", "interrupted"]
"""Whether all was tried that should be, the time was up, or somebody stopped it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Entry(_Part):
    """A candidate, as it was measured last."""

    key: str
    name: str
    recipe: Recipe
    fidelity: Annotated[float, Field(gt=0, le=1)]
    """Share of training steps and judging examples that it had; below 1 it is a glimpse."""
    figures: dict[str, float]
    """By the names that targets use: `speed`, `size`, `drop` …"""
    uses: list[LinearUse]
    """Its linear layers."""
    seconds: float
    artifact: str = ""
    """Its directory, from the front's; empty if it was not kept."""
    on_front: bool = False
    held_out: dict[str, float] = {}
    """Finalists only: figures of quality on examples that nothing was chosen by."""
    served: ServedFigures | None = None
    """Finalists only: what it did behind the service, where there is one."""

    @property
    def asked(self) -> dict[str, float]:
        """The figures that a target is held against: a finalist's are the held-out ones and the served speed."""
        served = {} if self.served is None or self.served.speedup is None else {"speed": self.served.speedup}
        return self.figures | self.held_out | served

    @property
    def final(self) -> bool:
        """Whether it was judged as a finalist."""
        return bool(self.held_out) or self.served is not None

    @property
    def point(self) -> Point:
        """What counts of it, NaN where nothing was measured."""
        figures, unknown = self.asked, float("nan")
        kept = 1 - figures["drop"] if "drop" in figures else unknown
        return Point(self.key, kept, figures.get("speed", unknown), figures.get("size", unknown))


class Failed(_Part):
    """A candidate that could not be made."""

    name: str
    reason: str


class Front(_Part):
    """All of a search."""

    schema_version: Literal[1] = 1
    model: str
    source_sha256: str
    data_sha256: str
    seed: int
    target: str
    node: Node
    """Where speeds were measured."""
    original: list[LinearUse]
    """The linear layers of the model as it came."""
    rest_ms: float = 0.0
    """What the model as it came does besides them, for `BULK_ROWS` tokens."""
    timings: LatencyTable
    """Of that node, so that another one's can be held against it."""
    original_served: ServedFigures | None = None
    entries: list[Entry]
    failed: list[Failed] = []
    chosen: str = ""
    """The key of the entry that is nearest to the target, if any was measured."""
    shortfalls: list[str] = []
    """What of the target the chosen one does not meet."""
    ended: Ended
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return bool(self.chosen) and not self.shortfalls

    def entry(self, key: str) -> Entry:
        """One of the entries."""
        return next(entry for entry in self.entries if entry.key == key)

    def write(self, folder: Path) -> None:
        """Keep it; all of it appears, or nothing."""
        write_whole(folder / FRONT_FILE, self.model_dump_json(indent=1))


class Decision(_Part):
    """What a node should run."""

    node: Node
    target: str
    chosen: str
    name: str
    artifact: str
    shortfalls: list[str]
    speeds: dict[str, float]
    """Of every entry on this node, over the model as it came, by key: measured elsewhere, carried over by tables."""


def choose(entries: Sequence[Entry], target: Target, figures: Mapping[str, Mapping[str, float]] | None = None) -> Entry:
    """The entry to run.

    Those that were tried in full come before glimpses, finalists before others. Of several
    that meet the target it is the knee of their front; where none does, the one that misses it by least.

    Args:
        entries: at least one.
        target: what is asked for.
        figures: of entries by key, in place of their own.
    """
    held = {entry.key: dict((figures or {}).get(entry.key, entry.asked)) for entry in entries}
    missing = {entry.key: target.missing(held[entry.key]) for entry in entries}

    def trust(entry: Entry) -> tuple[bool, bool]:
        return entry.fidelity == 1, entry.final

    meeting = [entry for entry in entries if missing[entry.key] == 0]
    if not meeting:
        return min(entries, key=lambda entry: (missing[entry.key], -entry.fidelity))
    most = max(map(trust, meeting))
    trusted = {entry.key: entry for entry in meeting if trust(entry) == most}
    points = [_point(entry, held[entry.key]) for entry in trusted.values()]
    best = pareto.knee(pareto.front(points))
    return next(iter(trusted.values())) if best is None else trusted[best.name]


def decide(front: Front, target: Target, table: LatencyTable) -> Decision:
    """Decide again, on another node, from what was measured where the search ran. Nothing is trained or run.

    A speed is carried over by the ratio of what the two nodes' latency tables predict. What a model does besides its
    linear layers is taken to differ between the nodes as the fp32 layers do.

    Args:
        front: of the search.
        target: what is asked for here.
        table: of this node, with all shapes of the front.

    Raises:
        CompressionError: the front has no entries.
        StageError: the table lacks a shape.
    """
    if not front.entries:
        raise CompressionError("the search measured nothing, so that there is nothing to decide between")
    rest_ms = front.rest_ms * _relative_speed(front, table)
    speeds = {}
    for entry in front.entries:
        there = front.timings.speedup(entry.uses, front.original, rest_ms=front.rest_ms)
        here = table.speedup(entry.uses, front.original, rest_ms=rest_ms)
        speeds[entry.key] = entry.asked["speed"] * here / there
    figures = {entry.key: entry.asked | {"speed": speeds[entry.key]} for entry in front.entries}
    best = choose(front.entries, target, figures)
    return Decision(
        node=table.node,
        target=str(target),
        chosen=best.key,
        name=best.name,
        artifact=best.artifact,
        shortfalls=[str(shortfall) for shortfall in target.shortfalls(figures[best.key])],
        speeds={key: round(speed, 4) for key, speed in speeds.items()},
    )


def read_front(folder: Path) -> Front:
    """The front that a search left in a directory.

    Raises:
        CompressionError: there is none, or it is not one.
    """
    path = folder / FRONT_FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CompressionError(f"{path} is larger than a front can be")
        return Front.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CompressionError(f"{folder} holds no search: {path.name}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise CompressionError(f"{path} is not a front: {where}: {first['msg']}") from None


def write_whole(path: Path, content: str) -> None:
    """Write a file beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        draft.write_text(content, "utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _relative_speed(front: Front, table: LatencyTable) -> float:
    """How much longer the fp32 layers take here than where the search ran."""
    there = front.timings.total_ms(front.original)
    return table.total_ms(front.original) / there if there else 1.0


def _point(entry: Entry, figures: Mapping[str, float]) -> Point:
    point = entry.point
    return Point(entry.key, point.quality, figures.get("speed", float("nan")), point.size)
