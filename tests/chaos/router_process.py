"""The process of one router: the real `ModelRouter` and `Lease`, its replicas behind Unix sockets instead of Ray."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from chaos.history import History
from chaos.orders import Order
from chaos.socket_pool import SocketPool
from headrace.messages import LaneEntry
from headrace.models.registry import Limits
from headrace.scripts import Reaped
from headrace_cluster.router import lane_reader, model_router, upkeep
from headrace_cluster.router.lease import Lease
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy

__all__ = ["run_router"]

_BLOCK_MS = 200


def run_router(order: Order) -> None:
    """Route until SIGTERM, and then until all that it held is answered."""
    asyncio.run(_route(order))


async def _route(order: Order) -> None:
    _record_deliveries(History(order.histories, order.life))
    lease = Lease(order.url, [order.model], consumer=order.life)
    router = ModelRouter(order.model, order.url, pool=SocketPool(order.sockets), policy=_policy(order), lease=lease)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, router.stop)
    lease.start()
    await router.run()
    await lease.stop()


def _policy(order: Order) -> RoutingPolicy:
    return RoutingPolicy(
        forming=FormingPolicy(max_jobs=order.batch_jobs),
        limits=Limits(retention_s=order.retention_s, lane_capacity=order.lane_capacity),
        jobs_per_replica=order.batch_jobs if order.words else 0,
        call_timeout_s=order.call_timeout_s,
        block_ms=_BLOCK_MS,
    )


def _record_deliveries(history: History) -> None:
    """Have routers write down what they read, and what they take over."""

    def note(event: str, entries: Sequence[LaneEntry]) -> None:
        envelopes = [entry.envelope for entry in entries]
        history.note(event, jobs=[(e.job_id, e.attempt) for e in envelopes])

    class RecordingReader(lane_reader.LaneReader):
        def __init__(self, *args: Any, take: Callable[[Sequence[LaneEntry]], None], **options: Any) -> None:
            def recorded(entries: Sequence[LaneEntry]) -> None:
                note("deliver", entries)
                take(entries)

            super().__init__(*args, take=recorded, **options)

    class RecordingUpkeep(upkeep.Upkeep):
        def __init__(self, *args: Any, take_over: Callable[[Sequence[Reaped]], None], **options: Any) -> None:
            def recorded(reaped: Sequence[Reaped]) -> None:
                note("deliver", [LaneEntry.read(row.lane, row.entry_id, row.fields) for row in reaped])
                take_over(reaped)

            super().__init__(*args, take_over=recorded, **options)

    vars(model_router).update(LaneReader=RecordingReader, Upkeep=RecordingUpkeep)
