"""A pool that several models share, as Ray Serve hosts it: its replicas, and what each router process knows of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Literal

from headrace.messages.host import HostReply
from headrace_cluster.observability.instruments import Instruments
from headrace_cluster.pools.port import PoolPort
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.slots.model_slots import ModelSlots
from headrace_cluster.slots.shared_slots import SharedSlots
from headrace_workers import node
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.hosting.model_host import ModelHost
from headrace_workers.replicas.watch import ReplicaWatch
from headrace_workers.telemetry.cold_start import ColdStart
from headrace_workers.telemetry.observability import Observability

__all__ = ["HostReplica", "SharedPool", "told_of"]


def told_of(engines: Mapping[str, EngineConfig]) -> dict[str, Any]:
    """What `HostReplica.reconfigure` is to be told for these models, by their names, as plain data."""
    return {"engines": {name: engine.model_dump(mode="json", exclude_unset=True) for name, engine in engines.items()}}


class HostReplica:
    """What Serve makes one actor of for each replica of a shared pool.

    Which models it hosts, it is told by `reconfigure`: they come, go and change while it runs.

    Args:
        redis: where answers go.
        threads: compute threads.
        device: where the models run.
        memory_bytes: for all models that are loaded.
        pool: the pool's name.
        observability: how the process is watched.
    """

    def __init__(
        self,
        redis: RedisAddress,
        threads: int,
        device: Literal["cpu", "cuda"],
        memory_bytes: int,
        pool: str,
        observability: Observability,
    ) -> None:
        start = ColdStart()
        start.note("process", time.process_time())
        self._instruments = Instruments.set_up(observability, "replica")
        node.prepare_process(threads)
        self._host = ModelHost(
            {},
            redis_url=redis.resolve(),
            memory_bytes=memory_bytes,
            make=partial(make_engine, device=device),
            watch=ReplicaWatch(pool, self._instruments.meter, self._instruments.tracer),
        )

    async def reconfigure(self, told: Mapping[str, Any]) -> None:
        """Host the models that `told_of` names. Serve calls it before the first batch, and when they change."""
        self._host.models.replace({name: EngineConfig(**engine) for name, engine in told["engines"].items()})

    async def check_health(self) -> None:
        """Nothing is wrong while this is answered. Serve asks every second, which is when metrics are recorded."""
        self._instruments.meter.flush()

    async def run(self, _replica: str, batch: bytes) -> bytes:
        """Run a packed batch of any of the models; the reply is a packed `HostReply`."""
        return await self._host.run(batch)

    async def stream(self, _replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Run a packed batch whose jobs end one by one."""
        async with aclosing(self._host.stream(batch)) as messages:
            async for message in messages:
                yield message

    async def info(self, _replica: str) -> dict[str, Any]:
        """What is loaded, and how often models came and went."""
        return self._host.info

    async def __del__(self) -> None:
        if hasattr(self, "_host"):
            await self._host.close()
            await asyncio.to_thread(self._instruments.close)


class SharedPool:
    """One shared pool in a router process: the port through which its models' routers call it, and its slots.

    Args:
        port: of its replicas.
        batches_per_replica: how many batches one router process may have at one replica, of all models together.
    """

    def __init__(self, port: PoolPort, *, batches_per_replica: int = 2) -> None:
        self._port = port
        self._batches_per_replica = batches_per_replica
        self._slots = SharedSlots(clock=time.monotonic)

    def slots(self, name: str, *, model: str, jobs_per_replica: int, wake: Callable[[], None]) -> ModelSlots:
        """The slots for the router of a model.

        Args:
            name: the model's in Redis, which is a shard's where it has shards.
            model: what has to be loaded.
            jobs_per_replica: jobs that a replica has at once, where they end one by one; 0: they end with their batch.
            wake: called when it may be that model's turn.
        """
        places = jobs_per_replica or self._batches_per_replica
        return self._slots.of_model(name, model=model, places=places, wake=wake)

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` now and whenever the replicas change."""
        self._port.listen(listener)

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Have a replica run a packed `Batch`; returns the packed `BatchOutcome`.

        Raises:
            ReplicaLostError, BatchFailedError: what the port raises.
            DecodeError: the replica's reply is none.
        """
        return self._hear(replica, await self._port.call(replica, batch))

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Have a replica run a packed `Batch` whose jobs end one by one; raises what `call` raises."""
        async with aclosing(self._port.stream(replica, batch)) as messages:
            async for message in messages:
                yield self._hear(replica, message)

    def _hear(self, replica: str, message: bytes) -> bytes:
        reply = HostReply.from_bytes(message)
        self._slots.heard(replica, reply.memory_bytes, reply.loaded)
        return reply.message

    async def kill(self, replica: str) -> None:
        """End a replica that hangs, at once, with all that its other models run there."""
        await self._port.kill(replica)
