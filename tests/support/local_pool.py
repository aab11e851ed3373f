"""Replicas in this very process, behind the port that a router calls: everything but Ray is real."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from headrace_cluster.pools.port import BatchFailedError, ReplicaLostError

__all__ = ["LocalPool"]


class Runs(Protocol):
    """What a replica is to its callers."""

    async def run(self, message: bytes) -> bytes:
        """Run a packed batch."""
        ...


class LocalPool:
    """A pool of plain objects that can be added, removed and made to fail."""

    def __init__(self, replicas: Mapping[str, Runs]) -> None:
        self.replicas = dict(replicas)
        self.calls: list[tuple[str, int]] = []
        self.killed: list[str] = []
        self._listeners: list[Callable[[frozenset[str]], None]] = []

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        self._listeners.append(listener)
        listener(frozenset(self.replicas))

    def change(self, replicas: Mapping[str, Runs]) -> None:
        """Replace the replicas, as Serve would report it."""
        self.replicas = dict(replicas)
        for listener in self._listeners:
            listener(frozenset(self.replicas))

    async def call(self, replica: str, batch: bytes) -> bytes:
        if replica not in self.replicas:
            raise ReplicaLostError(f"{replica} is gone", reached=False)
        self.calls.append((replica, len(batch)))
        try:
            return await self.replicas[replica].run(batch)
        except ReplicaLostError:
            raise
        except Exception as error:
            raise BatchFailedError(repr(error)) from error

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        if replica not in self.replicas:
            raise ReplicaLostError(f"{replica} is gone", reached=False)
        self.calls.append((replica, len(batch)))
        streams: Any = self.replicas[replica]
        try:
            async with aclosing(streams.stream(batch)) as messages:
                async for message in messages:
                    yield message
        except (ReplicaLostError, GeneratorExit):
            raise
        except Exception as error:
            raise BatchFailedError(repr(error)) from error

    async def kill(self, replica: str) -> None:
        """Take note; a plain object cannot be killed."""
        self.killed.append(replica)
