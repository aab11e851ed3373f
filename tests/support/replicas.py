"""Replicas that die, vanish and hang: what a pool does to a router on bad days."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.messages import Batch
from headrace_cluster.pools.port import ReplicaLostError
from headrace_workers.replicas.replica import Replica

__all__ = ["DyingReplica", "HangingReplica"]


class DyingReplica:
    """Dies with a batch: before it ran it, or after its answers were written and before it could say so.

    Args:
        replica: the one that would have run it.
        dies: asked with each batch.
        after_the_work: whether it dies with its answers written.
    """

    def __init__(
        self, replica: Replica, dies: Callable[[Batch], bool] = lambda _: True, *, after_the_work: bool = False
    ) -> None:
        self._replica = replica
        self._dies = dies
        self._after = after_the_work
        self.deaths = 0

    async def run(self, message: bytes) -> bytes:
        dies = self._dies(Batch.from_bytes(message))
        outcome = await self._replica.run(message) if self._after or not dies else b""
        if dies:
            self.deaths += 1
            raise ReplicaLostError("died")
        return outcome


class HangingReplica:
    """Accepts a batch and never says anything again."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, message: bytes) -> bytes:
        self.calls += 1
        await asyncio.Event().wait()
        raise AssertionError
