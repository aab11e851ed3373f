"""A whole service without Ray: a real router and real replicas, in the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from headrace.tasks import end_task
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_cluster.router.generation import GenerationFence
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.engines.base import Engine
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.replicas.decoder_replica import DecoderReplica
from headrace_workers.replicas.replica import Replica
from headrace_workers.replicas.watch import ReplicaWatch
from support.local_pool import LocalPool

__all__ = ["PlainService", "leased"]


@asynccontextmanager
async def leased(url: str, model: str, consumer: str = "router") -> AsyncIterator[Lease]:
    """A lease that beats until the context ends."""
    lease = Lease(url, [model], consumer=consumer)
    lease.start()
    try:
        yield lease
    finally:
        await lease.stop()


def _replica(model: str, engine: Any, url: str, watch: ReplicaWatch | None) -> Any:
    return (DecoderReplica if hasattr(engine, "step") else Replica)(model, engine, redis_url=url, watch=watch)


class PlainService:
    """Hosts one model until the context ends; then everything that the router held has been answered.

    Args:
        url: the Redis server.
        model: its name.
        engines: one replica for each; by default a single `EchoEngine`. For those that generate, the policy says how
            many jobs each replica has.
        policy: how jobs are routed.
        consumer: the name of the router's consumer.
        fence: of the router's generation.
        watch: of the router.
        replica_watch: of the replicas.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *engines: Engine,
        policy: RoutingPolicy | None = None,
        consumer: str = "router",
        fence: GenerationFence | None = None,
        watch: RouterWatch | None = None,
        replica_watch: ReplicaWatch | None = None,
    ) -> None:
        self.replicas: dict[str, Replica] = {
            f"replica-{n}": _replica(model, engine, url, replica_watch)
            for n, engine in enumerate(engines or (EchoEngine(),))
        }
        self.pool = LocalPool(self.replicas)
        self.lease = Lease(url, [model], consumer=consumer)
        self.router = ModelRouter(
            model,
            url,
            pool=self.pool,
            policy=policy or RoutingPolicy(block_ms=50),
            lease=self.lease,
            fence=fence,
            watch=watch,
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.lease.start()
        self._task = asyncio.create_task(self.router.run())
        while not self.router.reachable:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self.router.stop()
        if error is None:
            await asyncio.wait({self._task}, timeout=10)
            assert self._task.done(), "the router did not finish what it held"
            self._task.result()
        else:
            await end_task(self._task)
        await self.lease.stop()
        for replica in self.replicas.values():
            await replica.close()
