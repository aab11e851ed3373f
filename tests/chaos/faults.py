"""Doing to a cluster what a plan says, and writing down when it was done and over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from chaos import sabotage
from chaos.cluster import Cluster
from chaos.plan import Fault, FaultKind
from chaos.serve_cluster import ServeCluster
from headrace.server.connection import execute

__all__ = ["Tormentor"]

_TORN: Final = b"*3\r\n$3\r\nSET\r\n$4\r\nto"
"""The beginning of a command, as a crash in the middle of a write leaves it."""

_LOST_BYTES: Final = 200_000

_TRIES: Final = 20
_TRY_AGAIN_S: Final = 0.1

_WHOLE: Final = b"$4\r\nEXEC\r\n"
"""The end of what a script wrote."""

Do = Callable[["Tormentor", Fault], Awaitable[str]]
"""Does it, and says to whom it was done; "" if there was nobody."""


class Tormentor:
    """Inflicts faults on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._redis_turn = asyncio.Lock()
        self._hashes = sabotage.hashes(cluster.broken)
        self.done: Counter[FaultKind] = Counter()
        """How often each kind was done."""

    async def follow(self, plan: Sequence[Fault]) -> None:
        """Inflict every fault at its time; returns when the last is over."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(max(0.0, started_s + fault.at_s - time.monotonic()))
                group.create_task(self._inflict(fault))
        for proxy in self._cluster.proxies.values():
            proxy.forgive()

    async def _inflict(self, fault: Fault) -> None:
        """Do it, as soon as there is somebody to do it to."""
        for _ in range(_TRIES):
            start_ns = time.monotonic_ns()
            if hit := await _DO[fault.kind](self, fault):
                self.done[fault.kind] += 1
                self._cluster.history.note("fault", kind=fault.kind, target=hit, start_ns=start_ns)
                return
            await asyncio.sleep(_TRY_AGAIN_S)

    # -- Redis ------------------------------------------------------------------------------------------

    async def kill_redis(self, fault: Fault) -> str:
        async with self._redis_turn:
            self._cluster.server.kill()
            self._cluster.history.note("redis.down")
            if fault.kind is FaultKind.TEAR_REDIS:
                self._tear()
            if self._cluster.broken == "lost_tail":
                self._lose_tail()
            await asyncio.sleep(fault.lasts_s)
            await self._cluster.start_server()
            self._cluster.history.note("redis.up")
        return "redis"

    def _tear(self) -> None:
        """Leave half a command behind, unless the kill did so itself: nothing ever comes behind a torn write."""
        with self._append_only_file().open("r+b") as file:
            file.seek(-min(len(_WHOLE), file.seek(0, os.SEEK_END)), os.SEEK_END)
            if file.read() == _WHOLE:
                file.write(_TORN)

    def _lose_tail(self) -> None:
        """Cut off the last of what was written, as a crash of the machine does with what was not synced."""
        path = self._append_only_file()
        os.truncate(path, max(0, path.stat().st_size - _LOST_BYTES))

    def _append_only_file(self) -> Path:
        """The one that the server writes to."""
        files = (self._cluster.server.directory / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda path: int(path.name.split(".")[-3]))

    async def stop_redis(self, fault: Fault) -> str:
        async with self._redis_turn:
            pid = self._cluster.server.pid
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            os.kill(pid, signal.SIGCONT)
        return "redis"

    async def tell_redis(self, *words: str) -> str:
        """Send one command to the server; "" if it is away, or stopped."""
        try:
            async with asyncio.timeout(_TRY_AGAIN_S * _TRIES):
                await execute(self._cluster.redis, *words)
        except (RedisError, OSError, TimeoutError):
            return ""
        return "redis"

    async def fill_memory(self, fault: Fault) -> str:
        if hit := await self.tell_redis("CONFIG", "SET", "maxmemory", "1mb"):
            await asyncio.sleep(fault.lasts_s)
            for _ in range(_TRIES):
                if await self.tell_redis("CONFIG", "SET", "maxmemory", "0"):
                    break
                await asyncio.sleep(_TRY_AGAIN_S)
        return hit

    # -- processes --------------------------------------------------------------------------------------

    async def strike(self, fault: Fault, number: signal.Signals) -> str:
        """Send a signal to whatever life the target has now."""
        life = self._cluster.life_of(fault.target)
        return life if life and self._cluster.signal(life, number) else ""

    async def stop(self, fault: Fault) -> str:
        """Stop a process for a while; it may be killed meanwhile."""
        if hit := await self.strike(fault, signal.SIGSTOP):
            await asyncio.sleep(fault.lasts_s)
            self._cluster.signal(hit, signal.SIGCONT)
        return hit

    async def kill_node(self, fault: Fault) -> str:
        assert isinstance(self._cluster, ServeCluster), "only the real Serve application has nodes"
        return await self._cluster.kill_node(int(fault.target.rpartition("-")[2]))

    # -- links ------------------------------------------------------------------------------------------

    async def drop_reply(self, fault: Fault) -> str:
        self._cluster.proxies[fault.target].drop_reply_to(self._hashes.get(fault.detail, fault.detail))
        return fault.target

    async def cut(self, fault: Fault) -> str:
        self._cluster.proxies[fault.target].cut()
        return fault.target

    async def hold(self, fault: Fault) -> str:
        proxy = self._cluster.proxies[fault.target]
        proxy.hold() if fault.kind is FaultKind.HOLD else proxy.hold_replies()
        await asyncio.sleep(fault.lasts_s)
        proxy.release()
        return fault.target

    async def partition(self, fault: Fault) -> str:
        island = self._cluster.proxies[fault.target]
        island.cut_off()
        await asyncio.sleep(fault.lasts_s)
        island.mend()
        return fault.target

    async def delay(self, fault: Fault) -> str:
        proxy = self._cluster.proxies[fault.target]
        proxy.delay_s = float(fault.detail)
        await asyncio.sleep(fault.lasts_s)
        proxy.delay_s = 0.0
        return fault.target


_DO: Final[Mapping[FaultKind, Do]] = {
    FaultKind.KILL_REDIS: Tormentor.kill_redis,
    FaultKind.TEAR_REDIS: Tormentor.kill_redis,
    FaultKind.STOP_REDIS: Tormentor.stop_redis,
    FaultKind.FLUSH_SCRIPTS: lambda self, _fault: self.tell_redis("SCRIPT", "FLUSH"),
    FaultKind.KILL_CLIENTS: lambda self, _fault: self.tell_redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
    FaultKind.FILL_MEMORY: Tormentor.fill_memory,
    FaultKind.KILL_NODE: Tormentor.kill_node,
    FaultKind.DROP_REPLY: Tormentor.drop_reply,
    FaultKind.CUT: Tormentor.cut,
    FaultKind.HOLD: Tormentor.hold,
    FaultKind.HALF_OPEN: Tormentor.hold,
    FaultKind.DELAY: Tormentor.delay,
    FaultKind.PARTITION: Tormentor.partition,
    **{
        FaultKind(f"kill_{role}"): lambda self, fault: self.strike(fault, signal.SIGKILL)
        for role in ("router", "replica", "producer")
    },
    **{
        FaultKind(f"end_{role}"): lambda self, fault: self.strike(fault, signal.SIGTERM)
        for role in ("router", "replica")
    },
    **{FaultKind(f"stop_{role}"): Tormentor.stop for role in ("router", "replica", "producer")},
}
