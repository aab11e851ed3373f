"""The sign of life of a consumer: while its heartbeat keys stand, nobody takes over what it holds.

A thread of its own, with an event loop of its own, sets the keys, so that nothing that a router does delays
them. Nothing is renewed for each job: a consumer that lives has all it holds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import redis.asyncio

from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.server.connection import commands, execute, execute_together, translated

__all__ = ["Lease", "LeaseState"]

log = logging.getLogger("headrace.lease")

_RETRY_S: Final = 0.2
_LOOK_EVERY_S: Final = 0.005
_REGULAR: Final = 2 / 3
"""Within which part of a lease the next beat follows, unless something was wrong."""


class LeaseState:
    """What is known of a lease, from the beats that were acknowledged. Time comes in as an argument.

    Args:
        ttl_s: how long a heartbeat key stands.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._beaten_s = float("-inf")
        self._unbroken_since_s = float("inf")
        self.lapses = 0
        """How often the keys were gone when they were set again, the first time not counted."""

    def beaten(self, sent_s: float, *, stood: bool, old_server: bool = False) -> None:
        """The server acknowledged a beat that was sent at `sent_s`.

        Args:
            stood: whether the keys still stood from the beat before.
            old_server: whether the server has been up for longer than a lease, so that all who live have had
                the time to say so.
        """
        first = self._beaten_s == float("-inf")
        self.lapses += not first and not stood
        if first or not stood or not self._regular(sent_s):
            self._unbroken_since_s = float("-inf") if first and old_server else sent_s
        self._beaten_s = max(self._beaten_s, sent_s)

    def held(self, now_s: float) -> bool:
        """Whether the keys stand for certain."""
        return now_s < self._beaten_s + self._ttl_s

    def may_reap(self, now_s: float) -> bool:
        """Whether others without a heartbeat are dead for certain.

        After the server was away, heartbeats are gone that were alive; whoever has beaten regularly for a whole
        lease since knows that the others have had the time to beat, too. That his own key stands still tells
        less: another's last beat may have been a little earlier.
        """
        return self._regular(now_s) and now_s - self._unbroken_since_s >= self._ttl_s

    def _regular(self, now_s: float) -> bool:
        return now_s < self._beaten_s + _REGULAR * self._ttl_s


class Lease:
    """Beats for one consumer, on the lanes of all models that it reads.

    Args:
        url: the Redis server.
        models: whose lanes.
        consumer: its name in the consumer groups.
        ttl_s: after how long without a beat it counts as dead.
        beat_s: how often it beats.
    """

    def __init__(
        self, url: str, models: Sequence[str], *, consumer: str, ttl_s: float = 3.0, beat_s: float = 1.0
    ) -> None:
        self.consumer = consumer
        self._url = url
        self._models = tuple(models)
        self._ttl_s = ttl_s
        self._beat_s = beat_s
        self._state = LeaseState(ttl_s)
        self._thread = threading.Thread(target=self._run, name="headrace-lease", daemon=True)
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat. Redis may still be away."""
        if not self._thread.is_alive():
            self._thread.start()

    @property
    def held(self) -> bool:
        """Whether nobody takes over what this consumer holds."""
        return self._state.held(time.monotonic())

    async def wait_held(self) -> None:
        """Return when it is held."""
        while not self.held:  # noqa: ASYNC110 - another thread sees to it
            await asyncio.sleep(_LOOK_EVERY_S)

    @property
    def may_reap(self) -> bool:
        """Whether consumers without a heartbeat are dead for certain."""
        return self._state.may_reap(time.monotonic())

    @property
    def lapses(self) -> int:
        """How often others may have taken over what this consumer held."""
        return self._state.lapses

    def leave(self, model: str) -> None:
        """Beat no more on the lanes of a model, whose router has ended: that its key is gone then is no lapse."""
        self._models = tuple(name for name in self._models if name != model)

    async def stop(self) -> None:
        """Beat no more. The keys lapse by themselves, or are deleted by `scripts.release`."""
        self._stopping.set()
        if self._loop is not None and self._beating is not None:
            with suppress(RuntimeError):  # its loop is closed already
                self._loop.call_soon_threadsafe(self._beating.cancel)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._beat_for_ever())

    async def _beat_for_ever(self) -> None:
        self._loop, self._beating = asyncio.get_running_loop(), asyncio.current_task()
        client = commands(self._url, timeout_s=self._beat_s, retries=0)
        try:
            while not self._stopping.is_set():
                pause_s = self._beat_s
                try:
                    async with asyncio.timeout(self._ttl_s / 2):
                        await self._beat(client)
                except (RedisError, TimeoutError) as error:
                    log.debug("a heartbeat of %s failed: %s", self.consumer, error)
                    pause_s = _RETRY_S
                await asyncio.sleep(pause_s)
        finally:
            await client.aclose()

    async def _beat(self, client: redis.asyncio.Redis) -> None:
        sent_s, models = time.monotonic(), self._models
        ttl_ms = int(self._ttl_s * 1000)
        async with translated("setting a heartbeat"):
            replies = await execute_together(
                client,
                [("SET", keys_of(name).heartbeat(self.consumer), "1", "PX", ttl_ms, "GET") for name in models],
            )
            old = await self._server_is_old(client) if not self._state.held(sent_s) else False
        missed = {name for name, reply in zip(models, replies, strict=True) if reply is None}
        self._state.beaten(sent_s, stood=missed.isdisjoint(self._models), old_server=old)

    async def _server_is_old(self, client: redis.asyncio.Redis) -> bool:
        info: dict[str, Any] = await execute(client, "INFO", "server")
        return int(info["uptime_in_seconds"]) > 2 * self._ttl_s
