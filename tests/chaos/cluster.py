"""A cluster of real processes under supervision: a server, proxies before it, routers, replicas, producers.

Whoever dies is born again under the same name, as a new life: `router-1.3` is the third life of `router-1`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from chaos import sabotage
from chaos.history import History
from chaos.island import Island
from chaos.nursery import Nursery
from chaos.orders import Order, Traffic
from chaos.socket_pool import socket_of
from headrace.server.connection import commands
from headrace_cluster.embedded import EmbeddedServer
from support.proxy import Proxy
from support.waiting import eventually

__all__ = ["Cluster", "Topology"]

_LINKS: Final = {"producer": "producers", "router": "routers", "replica": "replicas"}


@dataclass(frozen=True, slots=True)
class Topology:
    """What a cluster is made of."""

    producers: tuple[Traffic, ...] = (Traffic(), Traffic())
    routers: int = 3
    replicas: int = 3
    fsync: Literal["always", "everysec", "no"] = "always"
    batch_s: float = 0.003
    batch_jobs: int = 32
    call_timeout_s: float = 6.0
    retention_s: float = 3600.0
    lane_capacity: int = 1_000_000
    words: int = 0
    """How many words a job generates at most, streamed, `batch_jobs` jobs at once in one replica; 0: jobs are answered
    in batches."""
    nodes: int = 0
    """Ray nodes that can be killed, besides the one that Ray itself lives on; for the real Serve application alone."""
    islands: bool = False
    """Whether each kind of process has a network of its own to the server, which can be partitioned."""
    rebirth_s: float = 0.1
    """How long until a dead process is born again."""


@dataclass(slots=True)
class _Process:
    order: Order
    lives: int = 0
    pid: int = 0
    wanted: bool = True
    ending: bool = False
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def life(self) -> str:
        return f"{self.order.name}.{self.lives}"


class Cluster:
    """Runs until its context ends.

    Args:
        directory: for everything that is written.
        topology: what to run.
        seed: of what producers submit.
        broken: the sabotage to run with; none for the real thing.
    """

    def __init__(self, directory: Path, topology: Topology, *, seed: int = 0, broken: str = "") -> None:
        self.directory = directory
        self.topology = topology
        self.seed = seed
        self.broken = broken
        self.server = EmbeddedServer(
            directory / "redis", fsync=topology.fsync, die_with_parent=True, options=dict(_SERVER_OPTIONS)
        )
        between = Island if topology.islands else Proxy
        self.proxies: dict[str, Any] = {link: between(self.server.url) for link in _LINKS.values()}
        for folder in ("histories", "replicas", "scratch", "logs"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        self.history = History(directory / "histories", "cluster")
        self.redis = commands(self.server.url, timeout_s=1.0, retries=0)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), sabotage.VARIABLE: broken}
        self._nursery = Nursery(self._died, directory / "logs" / "nursery.log", environment)
        self._processes: dict[str, _Process] = {}
        self._by_pid: dict[int, _Process] = {}
        self._early_deaths: dict[int, int] = {}
        self._rebirths: set[asyncio.Task[None]] = set()
        self._birth = asyncio.Lock()
        # One thread for all of its lives: the server dies with the thread that started it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="chaos-server")

    async def __aenter__(self) -> Self:
        try:
            await self.start_server()
            for proxy in set(self.proxies.values()):
                await proxy.__aenter__()
            await self._nursery.start()
            await self._start_service()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _start_service(self) -> None:
        for n in range(self.topology.replicas):
            await self._add("replica", n)
        for n in range(self.topology.routers):
            await self._add("router", n)
        await eventually(self._is_ready, within_s=20)

    async def _is_ready(self) -> bool:
        sockets = len(list((self.directory / "replicas").glob("*.sock")))
        reading = await self.redis.client_list(_type="normal")
        blocked = sum(client["cmd"] == "xreadgroup" for client in reading)
        return sockets == self.topology.replicas and blocked >= self.topology.routers

    async def start_producers(self) -> None:
        """Let there be work."""
        for n, traffic in enumerate(self.topology.producers):
            await self._add("producer", n, traffic)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.wanted = False
        for task in self._rebirths:
            task.cancel()
        await self._nursery.close()
        await self._stop_service()
        for proxy in set(self.proxies.values()):
            with suppress(AssertionError):  # it was never started
                await proxy.__aexit__(None, None, None)
        with suppress(Exception):
            await self.redis.aclose()
        self.server.kill()
        self._starter.shutdown()
        self.history.close()

    async def start_server(self) -> None:
        """Start the server on what it left; loading that may take its time, which is everybody else's too."""
        await asyncio.get_running_loop().run_in_executor(self._starter, self.server.start)

    async def _stop_service(self) -> None:
        """Routers and replicas went with the nursery."""

    # -- births and deaths ------------------------------------------------------------------------------

    async def _add(self, role: str, number: int, traffic: Traffic | None = None) -> None:
        name = f"{role}-{number}"
        topology = self.topology
        order = Order(
            role=role,
            name=name,
            life="",
            directory=self.directory,
            url=self.proxies[_LINKS[role]].url,
            seed=self.seed,
            traffic=traffic or Traffic(),
            batch_s=topology.batch_s,
            batch_jobs=topology.batch_jobs,
            call_timeout_s=topology.call_timeout_s,
            retention_s=topology.retention_s,
            lane_capacity=topology.lane_capacity,
            words=topology.words,
        )
        self._processes[name] = _Process(order)
        await self._bear(self._processes[name])

    async def _bear(self, process: _Process) -> None:
        async with self._birth:
            process.lives += 1
            process.ending = False
            process.pid = pid = await self._nursery.bear(replace(process.order, life=process.life))
        self._by_pid[pid] = process
        self.history.note("process.start", name=process.life, role=process.order.role, pid=pid)
        if pid in self._early_deaths:
            self._died(pid, self._early_deaths.pop(pid))

    def _died(self, pid: int, status: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is None:
            self._early_deaths[pid] = status
            return
        process.pid = 0
        self.history.note(
            "process.exit", name=process.life, role=process.order.role, status=status, meant=process.ending
        )
        socket_of(self.directory / "replicas", process.life).unlink(missing_ok=True)
        if process.wanted and not (status == 0 and process.order.role == "producer"):
            self._spawn(self._bear_again(process))
        else:
            process.exited.set()

    async def _bear_again(self, process: _Process) -> None:
        await asyncio.sleep(self.topology.rebirth_s)
        await self._bear(process)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._rebirths.add(task)
        task.add_done_callback(self._rebirths.discard)

    # -- what is done to processes ----------------------------------------------------------------------

    def life_of(self, name: str) -> str:
        """The present life of a process, or "" between two."""
        process = self._processes[name]
        return process.life if process.pid else ""

    def signal(self, life: str, number: signal.Signals) -> bool:
        """Send a signal to a process, if this life of it lasts still."""
        process = self._processes[life.rpartition(".")[0]]
        if process.life != life or not process.pid:
            return False
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.ending = True
        return _send(process.pid, number)

    async def end_producers(self, *, within_s: float) -> None:
        """Have producers submit nothing more, and wait until each has all its answers.

        Raises:
            TimeoutError: they have not.
        """
        producers = [process for process in self._processes.values() if process.order.role == "producer"]
        async with asyncio.timeout(within_s):
            while waiting := [process for process in producers if not process.exited.is_set()]:
                for process in waiting:  # again, since who was just born may not have heard
                    if process.pid:
                        _send(process.pid, signal.SIGTERM)
                await asyncio.wait([asyncio.ensure_future(waiting[0].exited.wait())], timeout=0.5)

    def pids(self, role: str) -> list[int]:
        """The living processes of a role."""
        return [p.pid for p in self._processes.values() if p.pid and p.order.role == role]

    @property
    def dropped_replies(self) -> int:
        """How many replies were executed and never told."""
        return sum(proxy.dropped for proxy in set(self.proxies.values()))


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it died, and the nursery is about to tell
        return False
    return True


_SERVER_OPTIONS: Final = {"auto-aof-rewrite-min-size": "4mb", "aof-load-truncated": "yes"}
