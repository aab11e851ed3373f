"""Replicas that generate, and that can be killed or lost in the middle, in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from headrace.tasks import end_task
from headrace_cluster.pools.port import ReplicaLostError
from headrace_workers.engines.stepping import StepEngine
from headrace_workers.replicas.decoder_replica import DecoderReplica
from support.decoders import FakeDecoder

__all__ = ["MortalReplica"]


class MortalReplica:
    """A replica whose `kill` is as sudden as a signal: what it was about to write is never written.

    Args:
        model: its name.
        url: the Redis server.
        engine: runs the jobs.
    """

    def __init__(self, model: str, url: str, engine: StepEngine) -> None:
        self.engine = engine
        self.replica = DecoderReplica(model, engine, redis_url=url)
        self._died = asyncio.Event()

    async def stream(self, message: bytes) -> AsyncGenerator[bytes]:
        """Run a batch until it ends, or this replica does."""
        died = asyncio.create_task(self._died.wait())
        try:
            async with aclosing(self.replica.stream(message)) as messages:
                while True:
                    said = asyncio.create_task(anext(messages, b""))
                    await asyncio.wait({said, died}, return_when=asyncio.FIRST_COMPLETED)
                    if died.done():
                        await end_task(said)
                        raise ReplicaLostError("killed")
                    if not said.result():
                        return
                    yield said.result()
        finally:
            await end_task(died)

    def lose(self) -> None:
        """Be out of reach for routers, and go on."""
        self._died.set()

    async def kill(self) -> None:
        """Die."""
        self.lose()
        for task in list(self.replica._tasks):
            await end_task(task)
        for loop in self.replica._loops._loops.values():
            loop.drop_all()

    async def close(self) -> None:
        """Let go of threads and connections."""
        if isinstance(self.engine, FakeDecoder):
            self.engine.go_on()
        await self.replica.close()
