"""The nearest neighbour: the same int8 model behind Ray Serve's own `@serve.batch`, as its documentation shows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from ray import serve

from headrace_cluster.bench.inprocess import Layout

__all__ = ["measure_serve_batch"]

_APP: Final = "serve-batch"
_BATCH: Final = 32
_IN_FLIGHT: Final = 256


class BatchedEmbedder:
    """A deployment that embeds one text a call, and lets Serve put up to 32 of them together."""

    def __init__(self, model: str, threads: int) -> None:
        from headrace_cluster.bench.padded import PaddedModel
        from headrace_workers import node

        node.prepare_process(threads)
        self._embed = PaddedModel(model, precision="int8")

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def _together(self, texts: list[str]) -> list[bytes]:
        return await asyncio.to_thread(self._embed, texts)

    async def __call__(self, text: str) -> bytes:
        answer: bytes = await self._together(text)
        return answer


def measure_serve_batch(model: str, texts: Sequence[str], *, layout: Layout) -> float:
    """Texts a second through a Serve handle, on the Ray that is running."""
    deployment = serve.deployment(BatchedEmbedder).options(
        num_replicas=layout.processes, max_ongoing_requests=4 * _BATCH, ray_actor_options={"num_cpus": 0}
    )
    # Its handles complain of every queue length that comes late, and here they all do.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.run(deployment.bind(model, layout.threads), name=_APP, route_prefix=None)
    try:
        return asyncio.run(_drive(texts))
    finally:
        serve.delete(_APP)


async def _drive(texts: Sequence[str]) -> float:
    handle = serve.get_app_handle(_APP)
    slots = asyncio.Semaphore(_IN_FLIGHT)

    async def one(text: str) -> Any:
        async with slots:
            return await handle.remote(text)

    await asyncio.gather(*(one(text) for text in texts[:64]))
    started = time.perf_counter()
    await asyncio.gather(*(one(text) for text in texts))
    return len(texts) / (time.perf_counter() - started)
