"""What each process says of itself while faults rain: a file a process, a line an event.

Lines go to the kernel one write each, so what a process wrote before it was killed is there to be read. All
processes run on one machine, so their monotonic clocks are one clock. One line may tell of many jobs.

============== ============================================ =====================================
event          facts                                        said by
============== ============================================ =====================================
submit.invoke  jobs                                         a producer, before it hands jobs over
submit.ok      jobs                                         a producer: they are acknowledged
submit.known   jobs                                         a producer: acknowledged before
submit.full    jobs                                         a producer: refused, to be tried again
submit.unknown jobs, error                                  a producer: it does not know
cancel.invoke  jobs                                         a producer
cancel.reply   answers {job: answer}                        a producer
result         inbox, entries [[job, status, attempt,       a consumer
               output, entry id, code]]
chunk          chunks [[entry id, job, tokens before,       a consumer; its next life may say some again
               tokens, text]]
deliver        jobs [[job, attempt]]                        a router
batch          jobs [[job, attempt, deadline ms]]           a replica: it was sent these
start          jobs                                         a replica: they run, together
finish         answered, late                               a replica: their answers are written
fault          kind, target, start_ns                       the cluster, when the fault is over
process.start  name, role, pid                              the cluster
process.exit   name, role, status, meant                    the cluster
redis.down     –                                            the cluster
redis.up       –                                            the cluster
phase          name                                         the scenario
audit          what AUDIT replied, and lane lengths         the scenario
memory         redis_bytes, router_bytes                    the scenario
============== ============================================ =====================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Event", "History", "read_histories", "read_history"]


class Event(NamedTuple):
    """One line of a history."""

    process: str
    """The process that wrote it, one life of it: `router-1.3`."""
    name: str
    mono_ns: int
    wall_ns: int
    facts: dict[str, Any]


class History:
    """Writes one process's events.

    Args:
        directory: where all histories of a run lie.
        process: this life of the process, by which its file is named.
    """

    def __init__(self, directory: Path, process: str) -> None:
        self._file = os.open(directory / f"{process}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, event: str, **facts: Any) -> None:
        """Write an event with the time of now."""
        line = json.dumps([event, time.monotonic_ns(), time.time_ns(), facts], separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def read_history(path: Path) -> Iterator[Event]:
    """The events of one process. A last line that a kill cut short is left out."""
    process = path.name.removesuffix(".jsonl")
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                name, mono_ns, wall_ns, facts = json.loads(line)
                yield Event(process, name, mono_ns, wall_ns, facts)


def read_histories(directory: Path, name: str = "*") -> Iterator[Event]:
    """The events of all processes whose files fit `name`, a process after the other."""
    for path in sorted(directory.glob(f"{name}.jsonl"), key=_life):
        yield from read_history(path)


def _life(path: Path) -> tuple[str, int]:
    """The lives of a process in their order: the tenth comes after the second."""
    process, _, life = path.name.removesuffix(".jsonl").rpartition(".")
    return (process, int(life)) if process else (life, 0)
