"""What this process holds: tasks, threads, sockets and files, to be compared before and after."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

__all__ = ["Holdings", "holdings"]

Holdings = dict[str, set[str]]


def holdings() -> Holdings:
    """Names of what is open or running, but for the default executor's threads, which end with the loop."""
    try:
        tasks = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    except RuntimeError:  # no loop runs
        tasks = set()
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    return {"tasks": tasks, "threads": threads, "files": _open_files()}


def _open_files() -> set[str]:
    """Each open descriptor with its target; a socket's or a pipe's inode tells it from a later one."""
    files = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:  # the directory's own descriptor, closed meanwhile
            continue
        if not target.startswith(("/dev/", "/proc/")):
            files.add(f"{link.name} -> {target}")
    return files
