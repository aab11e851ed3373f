"""A pool as Ray Serve hosts it: the deployment of its replicas, and the port through which a router calls them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Literal

import grpc  # type: ignore[import-untyped]
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from headrace_cluster.observability.instruments import Instruments
from headrace_cluster.pools.port import BatchFailedError, PoolPort, ReplicaLostError
from headrace_cluster.pools.replicas import replicas_of
from headrace_cluster.redis_address import RedisAddress
from headrace_workers import node
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.replicas.decoder_replica import DecoderReplica
from headrace_workers.replicas.first_answer import answer_once
from headrace_workers.replicas.replica import Replica
from headrace_workers.replicas.watch import ReplicaWatch
from headrace_workers.telemetry.cold_start import ColdStart
from headrace_workers.telemetry.observability import Observability
from headrace_workers.variants.adaptive import AdaptiveModel
from headrace_workers.variants.choice import WantedVariant

__all__ = ["JoinedPools", "PoolReplica", "ServePool"]

_PLAIN: Final = Observability()


class PoolReplica:
    """What Serve makes one actor of for each replica.

    Args:
        model: the name under which producers know it.
        engine: which engine, on what.
        redis: where answers go.
        threads: compute threads.
        device: where the model runs.
        pool: the name of the pool, among those of the model.
        observability: how the process is watched.
        wanted: of an adaptive model, the variants that its owner named; None: it runs one, whatever comes.
    """

    def __init__(
        self,
        model: str,
        engine: EngineConfig,
        redis: RedisAddress,
        threads: int,
        device: Literal["cpu", "cuda"],
        pool: str = "",
        observability: Observability = _PLAIN,
        wanted: Sequence[WantedVariant] | None = None,
    ) -> None:
        self._start = ColdStart()
        self._start.note("process", time.process_time())  # not its age: Ray keeps processes that wait for work
        self._instruments = Instruments.set_up(observability, "replica")
        self._watch = ReplicaWatch(pool, self._instruments.meter, self._instruments.tracer)
        self._model, self._pool, self._url = model, pool, redis.resolve()
        node.prepare_process(threads)  # before anything is measured or packed
        with self._start.active():
            self._adaptive = None if wanted is None else AdaptiveModel(engine, wanted, device)
            made: Any = self._adaptive.make() if self._adaptive else make_engine(engine, device=device)
        answer_once(made, self._start)
        hosts = DecoderReplica if engine.generates else Replica
        self._replica: Any = hosts(model, made, redis_url=self._url, watch=self._watch)

    async def check_health(self) -> None:
        """Nothing is wrong while this is answered. Serve asks every second, which is when gauges are said again.

        Raises:
            EngineLostError: it has no engine any more, and another replica must take its place.
        """
        if self._adaptive is not None:
            self._adaptive.keep_following(self._replica, model=self._model, pool=self._pool, redis_url=self._url)
        self._watch.started(self._model, self._start.seconds)
        if isinstance(self._replica, DecoderReplica):
            self._replica.say_how_busy()
        self._instruments.meter.flush()

    async def run(self, _replica: str, batch: bytes) -> bytes:
        """Run a packed batch. The first argument is for `DirectRouter`, which has read it by now."""
        outcome: bytes = await self._replica.run(batch)
        return outcome

    async def stream(self, _replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Run a packed batch whose jobs end one by one."""
        async with aclosing(self._replica.stream(batch)) as messages:
            async for message in messages:
                yield message

    async def info(self, _replica: str) -> dict[str, Any]:
        """What was loaded."""
        info = self._replica.engines.info
        return {
            "variant": info.variant,
            "task": info.task,
            "device": info.device,
            "load_s": info.load_s,
            "cold_start_s": dict(self._start.seconds),
            **info.details,
        }

    async def __del__(self) -> None:
        if hasattr(self, "_replica"):  # else the engine could not be made
            if self._adaptive is not None:
                await self._adaptive.close()
            await self._replica.close()
            await asyncio.to_thread(self._instruments.close)


class ServePool:
    """The port to one pool, for use on a router's event loop."""

    def __init__(self, app: str, deployment: str, handle: DeploymentHandle) -> None:
        # Values, not object references: a message of a batch's size is cheaper by gRPC than through plasma.
        self._run = handle.options(method_name="run", _by_reference=False)
        if not self._run.is_initialized:
            self._run._init()  # else Serve names no replicas before the first call
        self._stream = handle.options(method_name="stream", stream=True, _by_reference=False)
        self._deployment_id = DeploymentID(name=deployment, app_name=app)
        self._replicas = replicas_of(app, deployment)

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` on this event loop, now and whenever Serve's word on the replicas changes."""
        loop = asyncio.get_running_loop()
        self._replicas.listen(lambda names: _on(loop, listener, names))

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Have a replica run a packed batch.

        Raises:
            ReplicaLostError: it died, or cannot be reached.
            BatchFailedError: its `run` raised.
        """
        try:
            return bytes(await self._run.remote(replica, batch))
        except Exception as error:
            raise _named(replica, error) from error

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Have a replica run a packed batch whose jobs end one by one; raises what `call` raises."""
        reply = self._stream.remote(replica, batch)
        try:
            async for message in reply:
                yield bytes(message)
        except Exception as error:
            raise _named(replica, error) from error
        finally:
            reply.cancel()  # where a router leaves, the replica need not tell it any more

    async def kill(self, replica: str) -> None:
        """End the replica's process. Serve's controller starts another."""
        name = ReplicaID(unique_id=replica, deployment_id=self._deployment_id).to_full_id_str()
        with suppress(ValueError, RayError):  # it is gone already
            actor = await asyncio.to_thread(ray.get_actor, name, namespace=SERVE_NAMESPACE)
            await asyncio.to_thread(ray.kill, actor)


def _named(replica: str, error: Exception) -> Exception:
    """What became of the replica, or of the batch that it ran, by what Serve raised."""
    if isinstance(error, RayTaskError):
        return BatchFailedError(f"replica {replica}: {error.cause!r}")
    if isinstance(error, ReplicaUnavailableError):
        return ReplicaLostError(f"replica {replica} is not there", reached=False)
    if isinstance(error, RayActorError | RayServeException | RayError | grpc.aio.AioRpcError):
        return ReplicaLostError(f"replica {replica}: {type(error).__name__}: {error}")
    return error


def _on(loop: asyncio.AbstractEventLoop, listener: Callable[[frozenset[str]], None], names: frozenset[str]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(listener, names)


class JoinedPools:
    """Several pools of one model as one: a replica's name begins with its pool's."""

    def __init__(self, pools: dict[str, PoolPort]) -> None:
        self._pools = pools
        self._names: dict[str, frozenset[str]] = dict.fromkeys(pools, frozenset())

    def listen(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` with the replicas of all pools whenever those of one change."""
        for pool, port in self._pools.items():
            port.listen(lambda names, pool=pool: self._changed(pool, names, listener))  # type: ignore[misc]

    def _changed(self, pool: str, names: frozenset[str], listener: Callable[[frozenset[str]], None]) -> None:
        self._names[pool] = frozenset(f"{pool}/{name}" for name in names)
        listener(frozenset().union(*self._names.values()))

    async def call(self, replica: str, batch: bytes) -> bytes:
        """Call the replica in its pool; raises what the pool's `call` raises."""
        pool, _, name = replica.partition("/")
        return await self._pools[pool].call(name, batch)

    async def stream(self, replica: str, batch: bytes) -> AsyncGenerator[bytes]:
        """Stream from the replica in its pool; raises what the pool's `stream` raises."""
        pool, _, name = replica.partition("/")
        async with aclosing(self._pools[pool].stream(name, batch)) as messages:
            async for message in messages:
                yield message

    async def kill(self, replica: str) -> None:
        """Kill the replica in its pool."""
        pool, _, name = replica.partition("/")
        await self._pools[pool].kill(name)
