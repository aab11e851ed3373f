"""What `headrace top` shows of a snapshot: tables for people, fields for programs. Pure, and without a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.messages.job import PRIORITIES
from headrace.models.dead_letters import DeadLetter
from headrace.models.snapshot import ModelSnapshot, Pace, PoolSnapshot, ServiceSnapshot

__all__ = ["TopView", "duration"]

_LETTERS: Final = 5
_MOST_MESSAGE: Final = 80
_OLD_S: Final = 60.0
_UNKNOWN: Final = "-"


class TopView:
    """One picture.

    Args:
        place: the server, without its password.
        snapshot: of the service.
        paces: of its models.
        rows: how many models there is room for; the busiest are shown.
    """

    def __init__(self, place: str, snapshot: ServiceSnapshot, paces: Mapping[str, Pace], *, rows: int = 1000) -> None:
        self._place = place
        self._snapshot = snapshot
        self._paces = paces
        self._models = sorted(snapshot.models, key=_urgency)
        self._rows = rows

    def fields(self) -> dict[str, Any]:
        """All of it, for programs. An infinite time to drain is null, with `grows` true."""
        snapshot = self._snapshot
        return {
            "time": _time(snapshot.time_ms),
            "redis": {
                "url": self._place,
                "latency_ms": snapshot.latency_s * 1000,
                "memory_bytes": snapshot.memory_bytes,
            },
            "models": [self._fields(model) for model in snapshot.models],
        }

    def _fields(self, model: ModelSnapshot) -> dict[str, Any]:
        overview, audit, pace = model.overview, model.overview.audit, self._paces.get(model.name, Pace())
        grows = pace.drain_s is not None and math.isinf(pace.drain_s)
        return {
            "model": model.name,
            "waiting": {lane.priority: lane.waiting for lane in overview.lanes},
            "delivered": overview.delivered,
            "delayed": audit.delayed,
            "oldest_s": model.oldest_s,
            "submitted": audit.submitted,
            "finished": audit.finished,
            "submitted_per_s": pace.submitted_per_s,
            "finished_per_s": pace.finished_per_s,
            "drain_s": None if grows else pace.drain_s,
            "grows": grows,
            "dead_letters": audit.dead_letters,
            "lost": audit.lost,
            "doubled": audit.doubled,
            "routers": [
                {"name": router.name, "alive": router.alive, "delivered": router.delivered} for router in model.routers
            ],
            "pools": [
                {
                    "pool": pool.name,
                    "replicas": pool.replicas,
                    "wanted": pool.wanted,
                    "status": pool.status,
                    "variant": pool.variant,
                }
                for pool in model.pools
            ],
            "batch_jobs": model.batch_jobs,
            "batch_tokens": model.batch_tokens,
            "last_dead_letters": [
                {"job_id": letter.envelope.job_id, "died": _time(letter.died_ms), "code": letter.code}
                for letter in model.letters
            ],
        }

    def render(self) -> RenderableType:
        """All of it, for people."""
        if not self._models:
            return Group(self._head(), Text("no service has registered a model in this Redis yet"))
        shown = self._models[: self._rows]
        parts: list[RenderableType] = [self._head(), self._lanes(shown)]
        if left := len(self._models) - len(shown):
            parts.append(Text(f"… and {left} models with less to do", style="dim"))
        if any(model.pools for model in shown):
            parts += [Text(), self._pools(shown)]
        letters = sorted(
            ((letter, model.name) for model in self._models for letter in model.letters),
            key=lambda pair: -pair[0].died_ms,
        )
        if letters:
            parts += [Text(), self._letters(letters[:_LETTERS])]
        return Group(*parts)

    def _head(self) -> Text:
        snapshot = self._snapshot
        head = Text("headrace top", style="bold")
        memory = f"{snapshot.memory_bytes / (1 << 20):,.0f} MiB"
        head.append(f"  {_time(snapshot.time_ms)}  {self._place}  {snapshot.latency_s * 1000:.1f} ms  {memory}", "dim")
        return head

    def _lanes(self, models: Sequence[ModelSnapshot]) -> Table:
        table = _table("model")
        for name in (
            "waiting " + "/".join(priority[0] for priority in PRIORITIES),
            "oldest",
            "in hand",
            "delayed",
            "in/s",
            "out/s",
            "drained in",
            "dead",
            "lost",
            "doubled",
            "routers",
        ):
            table.add_column(name, justify="right", no_wrap=True)
        for model in models:
            table.add_row(model.name, *self._cells(model))
        return table

    def _cells(self, model: ModelSnapshot) -> list[RenderableType]:
        overview, audit, pace = model.overview, model.overview.audit, self._paces.get(model.name, Pace())
        alive = sum(router.alive for router in model.routers)
        old = model.oldest_s is not None and model.oldest_s > _OLD_S
        return [
            "/".join(f"{lane.waiting:,}" for lane in overview.lanes),
            Text(duration(model.oldest_s), style="yellow" if old else ""),
            f"{overview.delivered:,}",
            f"{audit.delayed:,}",
            _rate(pace.submitted_per_s),
            _rate(pace.finished_per_s),
            Text("grows", style="yellow") if pace.drain_s == math.inf else duration(pace.drain_s),
            _alarming(audit.dead_letters, "yellow"),
            _alarming(audit.lost, "bold red"),
            _alarming(audit.doubled, "bold red"),
            Text(f"{alive:,}", style="" if alive else "bold red"),
        ]

    def _pools(self, models: Sequence[ModelSnapshot]) -> Table:
        table = _table("pool")
        for name in ("replicas", "wanted", "jobs a batch", "tokens a batch"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("status", "variant"):
            table.add_column(name, no_wrap=True)
        seen: set[str] = set()
        for model in models:
            for pool in model.pools:
                if pool.name not in seen:
                    seen.add(pool.name)
                    table.add_row(pool.name, *_pool_cells(model, pool))
        return table

    def _letters(self, letters: Sequence[tuple[DeadLetter, str]]) -> Table:
        table = _table("last dead letters")
        for name in ("model", "job", "code", "message"):
            table.add_column(name, no_wrap=True)
        for letter, model in letters:
            message = " ".join(letter.message.split())[:_MOST_MESSAGE]
            table.add_row(_time(letter.died_ms), model, letter.envelope.job_id, letter.code, Text(message))
        return table


def _urgency(model: ModelSnapshot) -> tuple[int, int, str]:
    """What is wrong comes first, then what has most to do."""
    audit = model.overview.audit
    return (-(audit.lost + audit.doubled), -audit.live, model.name)


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    return table


def _pool_cells(model: ModelSnapshot, pool: PoolSnapshot) -> list[RenderableType]:
    short = pool.replicas is not None and pool.wanted is not None and pool.replicas < pool.wanted
    return [
        Text(_count(pool.replicas), style="yellow" if short else ""),
        _count(pool.wanted),
        _rate(model.batch_jobs),
        _rate(model.batch_tokens),
        pool.status or _UNKNOWN,
        pool.variant or _UNKNOWN,
    ]


def _alarming(count: int, style: str) -> Text:
    return Text(f"{count:,}", style=style if count else "")


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _rate(number: float | None) -> str:
    if number is None:
        return _UNKNOWN
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}"


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: `42 s`, `3 m 20 s`, `2 h 5 m`."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, less in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {less}"
    return f"{whole} s"


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
