"""`headrace top`: a whole service at one glance, again every other second."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Annotated, Final, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from headrace.cli.options import AsJson, RedisUrl
from headrace.cli.output import Exit, Output
from headrace.cli.running import run_to_end
from headrace.cli.top_view import TopView
from headrace.errors import RedisUnavailableError
from headrace.models.snapshot import ServiceSnapshot, SnapshotReader, Speedometer
from headrace.server.connection import commands, redacted, resolve_url

__all__ = ["Watcher", "top"]

log = logging.getLogger("headrace.cli")

_GROUP: Final = "headrace.top"
_TAKEN_ROWS: Final = 18
"""Lines of a screen that are not a model's."""
_LEAST_ROWS: Final = 5
_MANY: Final = 1000

_Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Only these models; else all.")]
_Once = Annotated[bool, typer.Option("--once", help="Look twice, one interval apart, print that, and end.")]
_Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")]
_Ray = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="The Ray cluster, for replicas and batches; `auto`: one on this machine. Else RAY_ADDRESS, else none.",
    ),
]


_Look = Callable[[int], Awaitable[TopView]]
"""Takes a picture with room for so many models."""


class Watcher(Protocol):
    """Adds to a snapshot what Redis does not know. An entry point of the group `headrace.top` makes one."""

    def complete(self, snapshot: ServiceSnapshot) -> ServiceSnapshot:
        """The snapshot, with replicas and batches. Called on a thread; what it cannot find out it leaves out."""

    def close(self) -> None:
        """Let go of the cluster."""


def top(
    models: _Models = None,
    *,
    once: _Once = False,
    interval: _Interval = 2.0,
    redis_url: RedisUrl = None,
    ray_address: _Ray = None,
    as_json: AsJson = False,
) -> int:
    """Watch lanes, rates, ages, routers, pools, and the last dead letters. Press q to leave.

    Needs nothing but Redis, and the rights of a monitor there; dead letters take those of an admin. Numbers of
    replicas and the shape of batches are Ray's to tell, and need the cluster extra: name its address.
    """
    url = resolve_url(redis_url)
    watcher = _watcher(ray_address or os.environ.get("RAY_ADDRESS"))
    try:
        return run_to_end(_watch(url, models, watcher, once=once, interval_s=interval, output=Output(as_json=as_json)))
    finally:
        if watcher is not None:
            watcher.close()


def _watcher(ray_address: str | None) -> Watcher | None:
    if not ray_address:
        return None
    for point in entry_points(group=_GROUP):
        connect: Callable[[str], Watcher] = point.load()
        return connect(ray_address)
    log.warning("replicas cannot be shown: pip install 'headrace[cluster]'")
    return None


async def _watch(
    url: str, models: Sequence[str] | None, watcher: Watcher | None, *, once: bool, interval_s: float, output: Output
) -> Exit:
    client, speedometer = commands(url), Speedometer(max(10.0, 2 * interval_s))
    reader = SnapshotReader(client, models)

    async def look(rows: int) -> TopView:
        snapshot = await reader.read()
        if watcher is not None:
            snapshot = await asyncio.to_thread(watcher.complete, snapshot)
        return TopView(redacted(url), snapshot, speedometer.add(snapshot), rows=rows)

    try:
        if once or output.as_json or not sys.stdout.isatty():
            await _print(look, once=once, interval_s=interval_s, output=output)
        else:
            await _show(look, redacted(url), interval_s)
    finally:
        await client.aclose()
    return Exit.DONE


async def _print(look: _Look, *, once: bool, interval_s: float, output: Output) -> None:
    """One picture after the other, as lines; the first has no rates, and is not shown where one alone is asked for."""
    view = await look(_MANY)
    while True:
        if not once:
            _say(view, output)
        await asyncio.sleep(interval_s)
        view = await look(_MANY)
        if once:
            return _say(view, output)


def _say(view: TopView, output: Output) -> None:
    output.emit(view.fields())
    output.show(view.render())


async def _show(look: _Look, place: str, interval_s: float) -> None:
    """The same on a screen of its own, until a key says that it is enough. A server that is away is waited for."""
    console, pressed = Console(markup=False, highlight=False, emoji=False), asyncio.Event()
    with _keys(pressed), Live(console=console, screen=True, auto_refresh=False) as live:
        while not pressed.is_set():
            try:
                view = await look(max(_LEAST_ROWS, console.height - _TAKEN_ROWS))
                live.update(view.render(), refresh=True)
            except RedisUnavailableError as error:
                live.update(Text(f"{place}: {error}; trying again", style="bold red"), refresh=True)
            try:
                await asyncio.wait_for(pressed.wait(), interval_s)
            except TimeoutError:
                continue


@contextmanager
def _keys(pressed: asyncio.Event) -> Iterator[None]:
    """Sets the event when q is pressed; the terminal gives each key at once meanwhile, and shows none."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def read() -> None:
        typed = os.read(keyboard, 64)
        if not typed or b"q" in typed.lower():  # nothing at all: the terminal is gone
            pressed.set()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
