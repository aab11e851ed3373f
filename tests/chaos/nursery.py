"""Where the cluster's processes are born: a process that has imported everything and forks one at an order.

A new life takes milliseconds then, and not the second that importing takes, so many can be killed. The
nursery also tells of every death. Everything here dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import select
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from chaos.orders import Order

__all__ = ["Nursery"]

_PR_SET_PDEATHSIG: Final = 1
_NOBODY: Final = -1


class Nursery:
    """The cluster's side of it.

    Args:
        on_exit: told the pid and the exit status of every process that ended; negative for a signal's.
        log: where the nursery's own errors go.
        environment: of all processes.
    """

    def __init__(self, on_exit: Callable[[int, int], None], log: Path, environment: dict[str, str]) -> None:
        self._on_exit = on_exit
        self._log = log
        self._environment = environment
        self._process: Process | None = None
        self._births: asyncio.Queue[int] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and wait until it has imported everything."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chaos.nursery", stdin=PIPE, stdout=PIPE, stderr=log, env=self._environment
            )
        self._reading = asyncio.create_task(self._read())
        await self._born()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "born" in said:
                self._births.put_nowait(said["born"])
            else:
                self._on_exit(said["died"], said["status"])
        self._births.put_nowait(_NOBODY)

    async def bear(self, order: Order) -> int:
        """Start a process; returns its pid."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(order.to_json().encode() + b"\n")
        return await self._born()

    async def _born(self) -> int:
        if (pid := await self._births.get()) == _NOBODY:
            raise RuntimeError(f"the nursery ended; {self._log} may say why")
        return pid

    async def close(self) -> None:
        """End it, and every process that it bore and that still lives."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading


# -- the other side -------------------------------------------------------------------------------------


def main() -> None:
    """Fork a process for each order on standard input; tell of births and deaths on standard output."""
    _die_with_parent()
    from chaos import producer, replica_process, router_process, sabotage

    sabotage.apply()
    roles: dict[str, Callable[[Order], None]] = {
        "producer": producer.run_producer,
        "replica": replica_process.run_replica,
        "router": router_process.run_router,
    }
    gc.collect()
    gc.freeze()
    deaths, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    _say(born=0)
    orders = _Lines(0)
    while True:
        ready, _, _ = select.select([0, deaths], [], [])
        if deaths in ready:
            os.read(deaths, 4096)
            _tell_deaths()
        if 0 in ready:
            for line in orders.read():
                order = Order.from_json(line)
                _say(born=_bear(roles[order.role], order))


class _Lines:
    """Whole lines of a file, by `os.read`: a buffer would hide lines from `select`."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""

    def read(self) -> list[str]:
        if not (data := os.read(self._file, 1 << 16)):
            sys.exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in lines]


def _say(**words: int) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _tell_deaths() -> None:
    with suppress(ChildProcessError):
        while (death := os.waitpid(-1, os.WNOHANG))[0]:
            _say(died=death[0], status=os.waitstatus_to_exitcode(death[1]))


def _bear(run: Callable[[Order], None], order: Order) -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        _begin(order)
        run(order)
        status = 0
    except BaseException:
        logging.exception("%s failed", order.life)
    finally:
        os._exit(status)


def _begin(order: Order) -> None:
    """Make the fork a process of its own."""
    _die_with_parent()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    os.dup2(os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
