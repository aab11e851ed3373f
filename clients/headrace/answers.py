"""Writing terminal entries, whoever has them to write: a replica, or a router for a job that never ran."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import redis.asyncio

from headrace import scripts
from headrace.errors import RedisFullError, RedisUnavailableError
from headrace.reader import Backoff
from headrace.scripts import Answer

__all__ = ["write_answers"]

log = logging.getLogger("headrace.answers")


async def write_answers(client: redis.asyncio.Redis, model: str, answers: Sequence[Answer]) -> list[bool]:
    """End jobs, waiting for as long as Redis cannot take it: an answer that was computed is not thrown away.

    Returns, for each answer, whether it became the job's one visible answer.
    """
    written: list[bool] = []
    backoff = Backoff()
    while len(written) < len(answers):
        chunk = answers[len(written) : len(written) + scripts.MAX_JOBS]
        try:
            written += await scripts.complete(client, model, chunk)
        except (RedisUnavailableError, RedisFullError) as error:
            log.warning("answers of %s wait: %s", model, error)
            await backoff.pause()
        else:
            backoff.reset()
    return written
