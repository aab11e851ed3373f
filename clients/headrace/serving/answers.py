"""Writing what must be written once it was computed: terminal entries, and the chunks before them.

Whoever has it to write, a replica, or a router for a job that never ran, waits for as long as Redis is away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import redis.asyncio

from headrace import scripts
from headrace.errors import RedisFullError, RedisUnavailableError
from headrace.scripts import Answer, Begun, ChunkOutcome, Delivery, GiveBack, RetryOutcome, Started
from headrace.server.backoff import Backoff

__all__ = ["begin_jobs", "give_back", "write_answers", "write_chunks"]

log = logging.getLogger("headrace.serving.answers")


T = TypeVar("T")
R = TypeVar("R")


async def write_answers(client: redis.asyncio.Redis, model: str, answers: Sequence[Answer]) -> list[bool]:
    """End jobs, waiting for as long as Redis cannot take it: an answer that was computed is not thrown away.

    Returns, for each answer, whether it became the job's one visible answer.
    """
    return await _patiently(answers, lambda some: scripts.complete(client, model, some), model)


async def give_back(client: redis.asyncio.Redis, model: str, jobs: Sequence[GiveBack]) -> list[RetryOutcome]:
    """Hand jobs back for another attempt, waiting for as long as Redis cannot take it."""
    return await _patiently(jobs, lambda some: scripts.retry(client, model, some), model)


async def begin_jobs(client: redis.asyncio.Redis, model: str, owner: str, jobs: Sequence[Begun]) -> list[Started]:
    """Begin to run jobs as `owner`, waiting for as long as Redis is away."""
    return await _patiently(jobs, lambda some: scripts.start(client, model, owner, some), model)


async def write_chunks(client: redis.asyncio.Redis, model: str, chunks: Sequence[Delivery]) -> list[ChunkOutcome]:
    """Deliver chunks, those of one job in their order, waiting for as long as Redis cannot take them."""
    return await _patiently(chunks, lambda some: scripts.chunk(client, model, some), model)


async def _patiently(items: Sequence[T], call: Callable[[Sequence[T]], Awaitable[list[R]]], model: str) -> list[R]:
    done: list[R] = []
    backoff = Backoff()
    while len(done) < len(items):
        try:
            done += await call(items[len(done) : len(done) + scripts.MAX_JOBS])
        except (RedisUnavailableError, RedisFullError) as error:
            log.warning("answers of %s wait: %s", model, error)
            await backoff.pause()
        else:
            backoff.reset()
    return done
