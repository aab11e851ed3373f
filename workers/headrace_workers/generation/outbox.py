"""Chunks and endings on their way to Redis: many of them a call, off the decode loop, in the order of each job.

Within a flush the tokens of one choice become one chunk. Chunks and flushes cost the same however much is in them, and
replica, Redis and consumer take it from the cores that compute: so all jobs are written together, as seldom as readers
of a text bear. The first token of a job is what somebody waits for, and so is an answer that is not streamed: what is
there by then leaves with them. While Redis is away what is on its way stays as it is, for nobody knows what of it was
written, and what comes meanwhile is put together behind it; it is as much as the jobs that run may generate.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis.asyncio

from headrace.codec import pack
from headrace.messages import Fate
from headrace.scripts import ChunkOutcome, Delivery
from headrace.serving.answers import write_chunks
from headrace_workers.generation.served_job import ServedJob
from headrace_workers.replicas.batch_jobs import write_endings

__all__ = ["Outbox", "merge"]

_LONGEST_S: Final = 0.05
"""How long chunks are gathered at most: nobody reads faster than twenty a second."""
_SHORTEST_S: Final = 0.02
"""How long at least, where jobs begin or end one upon the other."""
_MOST_TOKENS: Final = 256
"""Of one chunk: with all that can be asked about each token, it stays below what one entry may hold."""


def merge(pieces: list[dict[str, Any]], chunk: dict[str, Any]) -> None:
    """Put a chunk with those of its job that are not written yet: behind the last of its choice, if there is room."""
    last = next((piece for piece in reversed(pieces) if piece["i"] == chunk["i"]), None)
    if last is None or len(last["tokens"]) + len(chunk["tokens"]) > _MOST_TOKENS:
        pieces.append(dict(chunk))  # the engine may keep its own
        return
    last["tokens"] = [*last["tokens"], *chunk["tokens"]]
    last["text"] += chunk["text"]
    if "logprobs" in chunk:
        last["logprobs"] = [*last["logprobs"], *chunk["logprobs"]]


class Outbox:
    """Writes what the jobs of one replica say.

    Args:
        client: where it goes.
        refused: told of a job that is not to be gone on with here: another owns it, or the server lost its stream.
        cancelled: told of a job that somebody has called off.
        ended: told what became of a job whose ending was written.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        refused: Callable[[ServedJob, ChunkOutcome], None],
        cancelled: Callable[[ServedJob], None],
        ended: Callable[[ServedJob, Fate], None],
    ) -> None:
        self._client = client
        self._refused = refused
        self._cancelled = cancelled
        self._told = ended
        self._open: dict[ServedJob, None] = {}
        self._ended: list[ServedJob] = []
        self._work = asyncio.Event()
        self._urgent = asyncio.Event()
        self._flushed_s = float("-inf")

    def add(self, job: ServedJob, chunk: dict[str, Any]) -> None:
        """Tokens of a choice, which follow those before."""
        if job.dropped:
            return
        if not self._seen_before(job):
            self._urgent.set()
        merge(job.pieces, chunk)
        self._open[job] = None
        self._work.set()

    def _seen_before(self, job: ServedJob) -> bool:
        return job.written > len(job.delivered) or bool(job.pieces)

    def end(self, job: ServedJob) -> None:
        """A job is over: its ending follows its chunks."""
        self._ended.append(job)
        self._work.set()
        if not job.streams:
            self._urgent.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._work.wait()
            await self._gather()
            self._work.clear()
            self._urgent.clear()
            self._flushed_s = time.monotonic()
            await self._flush()

    async def _gather(self) -> None:
        """Wait until what there is should be written."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._flushed_s + _LONGEST_S - time.monotonic()):
                await self._urgent.wait()
                await asyncio.sleep(self._flushed_s + _SHORTEST_S - time.monotonic())

    async def _flush(self) -> None:
        streaming, self._open = list(self._open), {}
        ended, self._ended = self._ended, []
        for model, jobs in _by_model(streaming).items():
            await self._write_chunks(model, jobs)
        for model, jobs in _by_model(ended).items():
            await self._write_endings(model, [job for job in jobs if not job.dropped])

    async def _write_chunks(self, model: str, jobs: Sequence[ServedJob]) -> None:
        rows = [(job, delivery) for job in jobs for delivery in _deliveries(job)]
        outcomes = await write_chunks(self._client, model, [delivery for _, delivery in rows])
        for (job, _), outcome in zip(rows, outcomes, strict=True):
            if outcome is ChunkOutcome.CANCELLING:
                self._cancelled(job)
            elif outcome is not ChunkOutcome.WRITTEN and not job.dropped:
                self._refused(job, outcome)

    async def _write_endings(self, model: str, jobs: Sequence[ServedJob]) -> None:
        fates = await write_endings(self._client, model, [job.ending() for job in jobs])
        for job, fate in zip(jobs, fates, strict=True):
            if not job.dropped:  # meanwhile
                self._told(job, fate)


def _by_model(jobs: Sequence[ServedJob]) -> dict[str, list[ServedJob]]:
    by_model = defaultdict(list)
    for job in jobs:
        by_model[job.model].append(job)
    return by_model


def _deliveries(job: ServedJob) -> list[Delivery]:
    """What is to be written of a job, which counts as written from here on: it is tried until it is."""
    pieces, job.pieces = job.pieces, []
    first, job.written = job.written, job.written + len(pieces)
    return [Delivery(job.owner, job.envelope, before, pack(piece)) for before, piece in enumerate(pieces, start=first)]
