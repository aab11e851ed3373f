"""`headrace serve` as a process, as people run it, and a look at what stays of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command_line import HEADRACE
from support.processes import Process, family, still_alive
from support.waiting import eventually_sync

__all__ = ["START_S", "STOP_S", "Place", "next_line", "nothing_stays"]

START_S, STOP_S = 90, 90


@dataclass
class Place:
    """Where the commands of one test run: temporary files and the embedded server's data lie in here."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def data(self) -> Path:
        return self.folder / "run" / "headrace"

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """`headrace serve`, at the head of a process group and a session of its own, as a terminal starts it."""
        process = subprocess.Popen(
            [HEADRACE, "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def write(self, config: dict[str, Any]) -> Path:
        file = self.folder / "config.json"  # which is YAML too
        file.write_text(json.dumps(config))
        return file

    def clean_up(self) -> None:
        """Kill what a failed test left running."""
        for process in self.started:
            for member in family(process.pid):
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(member.pid, signal.SIGKILL)
            process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    """What it says next; its error where it ended without a word."""
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout.readline() or process.stderr.read()


def nothing_stays(place: Place, processes: set[Process]) -> None:
    """No process and no temporary file."""
    assert len(processes) > 5
    eventually_sync(lambda: not still_alive(processes), within_s=10, told=lambda: still_alive(processes))
    left = [str(file) for file in place.temporary.rglob("*") if not file.is_dir() and "torchinductor_" not in str(file)]
    left += [file.name for file in place.temporary.iterdir() if not file.name.startswith("torchinductor_")]
    assert left == [], left
