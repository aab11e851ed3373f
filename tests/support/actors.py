"""The processes of Serve replicas that this process has started, found by how Ray names them."""

from __future__ import annotations

import os
from pathlib import Path

from support.processes import family

__all__ = ["actors_of"]


def actors_of(deployment: str, *, app: str = "headrace") -> list[int]:
    """The process ids of a deployment's replicas that live now."""
    title = f"ray::ServeReplica:{app}:{deployment}"
    return sorted(process.pid for process in family(os.getpid()) if _title(process.pid).startswith(title))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").rstrip("\0 ")
    except OSError:  # it ended meanwhile
        return ""
