"""Replicas on a thread of their own, behind the port that a router calls: a service without Ray, for counting.

What a router's thread computes is then the router's alone, and a replica costs so little that there can be dozens on
any machine. A call goes from one event loop to the other; through Serve it would cost the router 2 ms of CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from threading import Thread
from types import TracebackType
from typing import Self

from headrace_cluster.pools.port import ReplicaLostError
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.replicas.replica import Replica

__all__ = ["ReplicaThread", "ThreadPool"]

_TIMEOUT_S = 30.0


class ReplicaThread:
    """An event loop on a thread, on which replicas of engines that do nothing answer jobs.

    Args:
        url: the Redis server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.loop = asyncio.new_event_loop()
        self._thread = Thread(target=self.loop.run_forever, name="bench-replicas", daemon=True)
        self._replicas: list[Replica] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(_TIMEOUT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _close(self) -> None:
        for replica in self._replicas:
            await replica.close()
        await self.loop.shutdown_default_executor()

    def pool(self, model: str, replicas: int) -> ThreadPool:
        """A pool of so many replicas of a model."""
        made = [Replica(model, EchoEngine(), redis_url=self._url) for _ in range(replicas)]
        self._replicas += made
        return ThreadPool(made, self.loop)


class ThreadPool:
    """The port to replicas on another thread's event loop."""

    def __init__(self, replicas: Sequence[Replica], loop: asyncio.AbstractEventLoop) -> None:
        self._replicas = {f"replica-{n}": replica for n, replica in enumerate(replicas)}
        self._loop = loop
        self._listener: Callable[[frozenset[str]], None] | None = None

    @property
    def heard(self) -> bool:
        """Whether the router waits for replicas, and for nothing else."""
        return self._listener is not None

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Nothing is there before `open`."""
        self._listener = listener

    def open(self) -> None:
        """Let the router know of all replicas."""
        assert self._listener is not None, "its router has not begun"
        self._listener(frozenset(self._replicas))

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Have a replica run a packed batch."""
        running = asyncio.run_coroutine_threadsafe(self._replicas[replica].run(batch), self._loop)
        return await asyncio.wrap_future(running)

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Nothing generates here.

        Raises:
            ReplicaLostError: always.
        """
        raise ReplicaLostError(f"{replica} does not generate", reached=False)
        yield b""

    async def kill(self, replica: str) -> None:
        """Nothing hangs here."""
