"""A replica that hosts many models: batches in, each of one model, which is loaded when a batch of it comes.

Each model has a replica of its own in here, exactly as it would have alone; they share the process, its cores, in
turn, and its memory, by `ModelCache`. Replies say which models are loaded, so that routers send batches to where
their model is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from functools import partial
from typing import Any

from headrace.messages import Batch, BatchOutcome, Fate, JobOutcomes
from headrace.messages.host import HostReply
from headrace.models.shards import model_of
from headrace.server.connection import commands
from headrace.tasks import end_task
from headrace_workers.engines.base import Engine, ItemError
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.generation.batch_call import LIFE_S
from headrace_workers.hosting.compute_turns import ComputeTurns, TurnTakingEngine
from headrace_workers.hosting.model_cache import ModelCache
from headrace_workers.replicas.batch_jobs import failure_of, write_endings
from headrace_workers.replicas.decoder_replica import DecoderReplica
from headrace_workers.replicas.replica import Replica
from headrace_workers.replicas.turns import Turns
from headrace_workers.replicas.watch import ReplicaWatch

__all__ = ["ModelHost"]

log = logging.getLogger("headrace.host")


class ModelHost:
    """Hosts engines of many models, of which `memory_bytes` are loaded at a time.

    A model that does not fit, or cannot be loaded, costs its own jobs an error, and no other model's.

    Args:
        engines: of each model, by the name under which producers know it.
        redis_url: where answers go.
        memory_bytes: for all models that are loaded.
        make: makes an engine; may take its time.
        watch: records what happens here.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineConfig],
        *,
        redis_url: str,
        memory_bytes: int,
        make: Callable[[EngineConfig], Engine] = make_engine,
        watch: ReplicaWatch | None = None,
    ) -> None:
        self._url = redis_url
        self._redis = commands(redis_url)
        self._turns = Turns()
        self._watch = watch or ReplicaWatch()
        self._compute_turns = ComputeTurns()
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="headrace-compute")
        self.models = ModelCache(engines, memory_bytes=memory_bytes, make=make, wrap=self._replica)

    def _replica(self, model: str, config: EngineConfig, engine: Engine) -> Replica | DecoderReplica:
        in_turn: Any = TurnTakingEngine(engine, self._compute_turns, partial(self.models.ran, model))
        if config.generates:
            return DecoderReplica(model, in_turn, redis_url=self._url, watch=self._watch)
        return Replica(model, in_turn, redis_url=self._url, watch=self._watch, computing=self._computing)

    @property
    def info(self) -> dict[str, Any]:
        """What is loaded, in bytes and seconds, and how often models came and went."""
        return {
            "memory_bytes": self.models.memory_bytes,
            "used_bytes": self.models.used_bytes,
            "models": {model.name: model._asdict() for model in self.models.loaded()},
            **asdict(self.models.counts),
        }

    async def run(self, message: bytes) -> bytes:
        """Run a packed `Batch` of any model; a packed `HostReply` around its `BatchOutcome`.

        Raises:
            DecodeError: the message is no batch.
        """
        batch = Batch.from_bytes(message)
        if not self._admits(batch):
            return self._reply(_outcome([Fate.RETURNED] * len(batch.entries)))
        try:
            async with self.models.lent(model_of(batch.model)) as replica:
                outcome: bytes = await replica.run(message)
        except ItemError as error:
            outcome = _outcome(await self._refuse(batch, error))
        finally:
            self._turns.leave()
        return self._reply(outcome)

    async def stream(self, message: bytes) -> AsyncGenerator[bytes]:
        """The same for a model that generates: replies around `JobOutcomes`, as a sign of life while it loads, too.

        Raises:
            DecodeError: the message is no batch.
        """
        batch = Batch.from_bytes(message)
        if not self._admits(batch):
            yield self._reply(_outcomes([Fate.RETURNED] * len(batch.entries)))
            return
        try:
            async with AsyncExitStack() as stack:
                loading = asyncio.ensure_future(stack.enter_async_context(self.models.lent(model_of(batch.model))))
                try:
                    while not (await asyncio.wait({loading}, timeout=LIFE_S))[0]:
                        yield self._reply(_outcomes([]))
                finally:
                    await end_task(loading)
                replica = loading.result()
                async with aclosing(replica.stream(message)) as messages:
                    async for said in messages:
                        yield self._reply(said)
        except ItemError as error:
            yield self._reply(_outcomes(await self._refuse(batch, error)))
        finally:
            self._turns.leave()

    def _admits(self, batch: Batch) -> bool:
        """Whether a batch may run now. One that is to run alone has the process to itself, other models included."""
        if model_of(batch.model) not in self.models:
            log.warning("a batch of %s, which this replica does not host, or not yet, goes back", batch.model)
            return False
        return self._turns.enter(time.monotonic(), alone=batch.alone)

    async def _refuse(self, batch: Batch, error: ItemError) -> list[Fate]:
        """Have the jobs of a model that cannot be had end, or tried again, as each of them asks for."""
        endings = [failure_of(entry, entry.envelope, error) for entry in batch.entries]
        return await write_endings(self._redis, batch.model, endings)

    def _reply(self, message: bytes) -> bytes:
        return HostReply(message, self.models.memory_bytes, self.models.loaded()).to_bytes()

    async def close(self) -> None:
        """Finish what computes, then let go of all models."""
        await self.models.close()
        self._computing.shutdown()
        await self._redis.aclose()


def _outcome(fates: list[Fate]) -> bytes:
    """Of a batch that never ran."""
    return BatchOutcome(fates, [0] * len(fates), 0.0).to_bytes()


def _outcomes(fates: list[Fate]) -> bytes:
    """Of jobs that never ran, from the first of their batch on."""
    return JobOutcomes(list(range(len(fates))), fates, [0] * len(fates), computed=False).to_bytes()
