"""Waiting until what was handed over is on the server's disk.

WAITAOF answers for the writes of its own connection alone: on another one it answers at once, whatever is on
disk. So it goes out with the script in one pipeline, behind a write of no consequence: a call that is tried
again after a lost reply, or that submits jobs a second time, writes nothing by itself, and would otherwise be
told that all is well.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import redis.asyncio
from redis.asyncio.connection import ConnectionPool

from headrace.errors import RedisDurabilityError, RedisUnavailableError
from headrace.keys import fsync_mark
from headrace.server.facts import ServerFacts, read_greeting
from headrace.server.redis_client import RedisClient, Request

__all__ = ["FsyncedClient", "waits_truly"]

_MARK_MS: Final = 1000
_TRUSTED: Final = {(7, 4): 3, (8, 0): 0}
"""Redis answers WAITAOF truly from these releases on (redis/redis#13793). Valkey, up to 9.1.2 at least, answers
before the write is on disk where appendfsync is everysec: it was measured, with fsyncs that were made slow."""


def waits_truly(facts: ServerFacts) -> bool:
    """Whether a server's WAITAOF can be believed."""
    if facts.kind != "redis" or not any(facts.version):
        return False
    branch = facts.version[:2]
    return facts.version[2] >= _TRUSTED[branch] if branch in _TRUSTED else branch > max(_TRUSTED)


class FsyncedClient(RedisClient):
    """A client whose scripts, when they reply, are on the server's disk.

    Args:
        within_s: how long that may take.
    """

    def __init__(self, pool: ConnectionPool, *, retries: int, single: bool = False, within_s: float) -> None:
        super().__init__(pool, retries=retries, single=single)
        self._within_ms = max(1, int(within_s * 1000))
        self._always: bool | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; a script is followed by the wait for the disk.

        Raises:
            RedisDurabilityError: the server cannot tell when a write is on disk.
            RedisUnavailableError: it is not there in time. It will be; repeating the call is safe.
        """
        if args[0] != "EVALSHA":
            return await super().execute_command(*args, **options)
        if self._always is None:
            self._always = await _syncs_always(self)
        if self._always:  # the server syncs before it replies
            return await super().execute_command(*args, **options)
        return await self.attempt(partial(self._run_and_wait, args))

    async def _run_and_wait(self, script: Request) -> Any:
        mark = ("SET", fsync_mark(str(script[3])), "1", "PX", _MARK_MS)
        reply, _, synced = await self.send_together([script, mark, ("WAITAOF", 1, 0, self._within_ms)])
        if synced[0] < 1:
            raise RedisUnavailableError(
                f"handed over, but not on the server's disk after {self._within_ms} ms; repeating the call is safe"
            )
        return reply


async def _syncs_always(client: redis.asyncio.Redis) -> bool:
    """Whether every reply of the server comes after its fsync; if not, WAITAOF can be relied on.

    Raises:
        RedisDurabilityError: neither is so.
    """
    facts = await read_greeting(client)
    if facts.durability == "always":
        return True
    if facts.durability == "none":
        raise RedisDurabilityError(
            f"the server brings nothing to its disk in time (appendonly {'yes' if facts.append_only else 'no'}, "
            f"appendfsync {facts.fsync}), as durable='fsynced' asks; "
            "run: CONFIG SET appendonly yes, CONFIG SET appendfsync everysec"
        )
    if not waits_truly(facts):
        raise RedisDurabilityError(
            f"{facts.name} cannot be relied on to tell when a write is on disk, as durable='fsynced' asks; give the "
            "server appendfsync always and leave durable at 'written', or use Redis 7.4.3, 8.0 or newer"
        )
    return False
