"""Processes of a command: which there are below it, and which of them are still there later."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Process", "family", "still_alive"]


class Process(NamedTuple):
    """One process; an id alone may be another's by and by."""

    pid: int
    started: str
    name: str


class _Stat(NamedTuple):
    process: Process
    parent: int
    session: int
    dead: bool


def _stat(pid: str) -> _Stat | None:
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:  # it ended meanwhile
        return None
    fields = tail.split()
    process = Process(int(pid), fields[19], head.partition("(")[2])
    return _Stat(process, int(fields[1]), int(fields[3]), fields[0] in "ZX")


def family(pid: int) -> set[Process]:
    """The living among a process, its descendants, and all others of the session that it leads."""
    stats = [stat for name in Path("/proc").iterdir() if name.name.isdecimal() and (stat := _stat(name.name))]
    found = {stat.process for stat in stats if not stat.dead and pid in (stat.process.pid, stat.session)}
    while True:
        pids = {process.pid for process in found}
        more = {stat.process for stat in stats if not stat.dead and stat.parent in pids} - found
        if not more:
            return found
        found |= more


def still_alive(processes: set[Process]) -> set[Process]:
    """Those that have not ended."""
    stats = (_stat(str(process.pid)) for process in processes)
    return {stat.process for stat in stats if stat and not stat.dead} & processes
