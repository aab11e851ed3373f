"""The command line in tests: what a run said, files for `headrace batch`, and an engine that counts."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_workers.engines.base import Prepared
from headrace_workers.engines.echo import EchoEngine

__all__ = ["HEADRACE", "CountingEngine", "Ran", "Run", "end", "read_lines", "start", "start_doomed", "write_lines"]

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


async def start(*arguments: str | Path) -> Process:
    """The installed command, as a process of its own."""
    return await asyncio.create_subprocess_exec(HEADRACE, *map(str, arguments), stdout=PIPE, stderr=PIPE)


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


_CRASHING = """
import importlib, inspect, os, signal, sys
from headrace.cli import main

place, when, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
module_name, _, name = place.partition(":")
owner = importlib.import_module(module_name)
*path, name = name.split(".")
for step in path:
    owner = getattr(owner, step)
original, calls = getattr(owner, name), 0

def die_if_due(moment):
    if moment == when and calls == count:
        os.kill(os.getpid(), signal.SIGKILL)

def plain(*args, **kwargs):
    global calls
    calls += 1
    die_if_due("before")
    value = original(*args, **kwargs)
    die_if_due("after")
    return value

async def awaited(*args, **kwargs):
    global calls
    calls += 1
    die_if_due("before")
    value = await original(*args, **kwargs)
    die_if_due("after")
    return value

setattr(owner, name, awaited if inspect.iscoroutinefunction(original) else plain)
sys.exit(main(sys.argv[4:]))
"""


async def start_doomed(place: str, when: str, count: int, *arguments: str | Path) -> Process:
    """A command that is killed (SIGKILL) just before or after the `count`-th call of `module:Class.function`."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CRASHING, place, when, str(count), *map(str, arguments), stdout=PIPE, stderr=PIPE
    )
