"""The command line in tests: what a run said, files for `headrace batch`, and an engine that counts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_workers.engines.base import Prepared
from headrace_workers.engines.echo import EchoEngine

__all__ = [
    "HEADRACE",
    "CountingEngine",
    "Ran",
    "Run",
    "Zygote",
    "end",
    "kill_started",
    "read_lines",
    "start",
    "write_lines",
]

HEADRACE = Path(sys.executable).with_name("headrace")


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What a `--json` command printed: every line of it is an object."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """Its last line: the result."""
        return self.objects[-1]


Run = Callable[..., Coroutine[Any, Any, Ran]]


_started: list[Process] = []


async def start(*arguments: str | Path) -> Process:
    """The installed command, as a process of its own."""
    process = await asyncio.create_subprocess_exec(HEADRACE, *map(str, arguments), stdout=PIPE, stderr=PIPE)
    _started.append(process)
    return process


def kill_started() -> None:
    """End what a failed test left running."""
    for process in _started:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
    _started.clear()


async def end(process: Process) -> Ran:
    """Wait for it."""
    out, err = await asyncio.wait_for(process.communicate(), timeout=30)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


class CountingEngine(EchoEngine):
    """An echo that counts how often it ran each input, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()
        self.answer: Callable[[Any], Any] = lambda value: value

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        self.ran.update(str(item.data) for item in items)
        return [self.answer(item.data) for item in items]


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """A file of JSON lines; what is bytes already is written as it is."""
    with path.open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode())
            file.write(b"\n")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


_ZYGOTE = """
import importlib, inspect, json, os, signal, sys
from headrace.cli import app, main

def doom(place, when, count):
    module_name, _, path = place.partition(":")
    owner = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), 0

    def die_if_due(moment):
        if (moment, calls) == (when, count):
            os.kill(os.getpid(), signal.SIGKILL)

    def plain(*args, **kwargs):
        nonlocal calls
        calls += 1
        die_if_due("before")
        value = original(*args, **kwargs)
        die_if_due("after")
        return value

    async def awaited(*args, **kwargs):
        nonlocal calls
        calls += 1
        die_if_due("before")
        value = await original(*args, **kwargs)
        die_if_due("after")
        return value

    setattr(owner, name, awaited if inspect.iscoroutinefunction(original) else plain)

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.environ.update(order["environment"])
        doom(*order["doom"])
        os._exit(main(order["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Zygote:
    """Runs commands that are killed on the way: a process that has imported everything forks for each of them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def kill_at(self, place: str, when: str, count: int, *arguments: str | Path) -> int:
        """Run a command and kill it (SIGKILL) just before or after the `count`-th call of `module:Class.function`.

        Returns how it ended.
        """
        order = {
            "environment": dict(os.environ),
            "doom": (place, when, count),
            "arguments": [str(argument) for argument in arguments],
        }
        return int(await asyncio.to_thread(self._exchange, json.dumps(order)))

    def _exchange(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it, once its last child has ended."""
        self._process.communicate(timeout=30)
