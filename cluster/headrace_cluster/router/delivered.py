"""What was delivered of an answer that nobody will finish: a router that ends such a job hands it over once more.

A job's replica died in the middle of it, and before another was free it was called off or its deadline passed. Its
chunks are in Redis still, in the list from which the next replica would have gone on.
"""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio

from headrace.errors import DecodeError, RedisError
from headrace.keys import keys_of
from headrace.messages.chunk import partial_output, unpack_chunk
from headrace.server.connection import execute, translated

__all__ = ["read_partial"]

_MOST_CHUNKS: Final = 100_000


async def read_partial(client: redis.asyncio.Redis, model: str, job_id: str, reason: str) -> dict[str, Any] | None:
    """The output of a job as far as it was delivered, without the prompt, of which a router knows nothing.

    None if nothing was delivered, or it cannot be read.

    Args:
        client: for commands.
        model: whose job.
        job_id: which.
        reason: the `finish_reason` of its choices.
    """
    try:
        async with translated("reading what was delivered of a job"):
            bodies = await execute(client, "LRANGE", keys_of(model).chunks(job_id), 1, _MOST_CHUNKS)
        return partial_output([unpack_chunk(body) for body in bodies], reason)
    except (DecodeError, RedisError):
        return None  # that it ended is worth more than how far it came
