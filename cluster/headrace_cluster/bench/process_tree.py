"""How much processor time a process and all that it started have taken: what other processes do is not in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["tree_cpu_s"]

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class _Times(NamedTuple):
    parent: int
    cpu_s: float


def tree_cpu_s(pid: int) -> float:
    """Seconds of processor time of a process and its living descendants, in user space and in the kernel (Linux)."""
    times = {int(folder.name): _times(folder) for folder in Path("/proc").iterdir() if folder.name.isdecimal()}
    tree = {pid}
    while more := {child for child, (parent, _) in times.items() if parent in tree} - tree:
        tree |= more
    return sum(times[member].cpu_s for member in tree & times.keys())


def _times(folder: Path) -> _Times:
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return _Times(0, 0.0)
    return _Times(int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK_S)
