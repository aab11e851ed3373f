"""A replica that follows what its pool is told to run: it loads the other variant, and changes between two batches.

It looks once a second. The other variant is loaded beside the one that runs if there is memory for both, else in its
place, while jobs wait. The one before is kept for the way back until its memory is needed. A variant that cannot be
loaded is said once and not tried again; the replica goes on with what it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from headrace.errors import RedisError
from headrace.keys import keys_of
from headrace.messages.rungs import Rung, pack_rungs, rungs_field, variant_field
from headrace.server.connection import commands, execute, translated
from headrace_workers import node
from headrace_workers.engines.base import Engine
from headrace_workers.replicas.engine_shelf import EngineShelf

__all__ = ["EngineLostError", "Switchable", "VariantSwitch"]

log = logging.getLogger("headrace.replica")

_LOOK_EVERY_S: Final = 1.0
_TELL_EVERY_S: Final = 30.0
_LEAST_SPARE_BYTES: Final = 256 << 20
"""Below that much free memory, an engine that is only kept for a way back goes."""


class EngineLostError(RuntimeError):
    """The replica has no engine any more: the new one could not be loaded, nor the one before it again."""


class Switchable(Protocol):
    """A replica whose engine can be another one from one batch to the next."""

    engines: EngineShelf[Any]


class VariantSwitch:
    """Has one replica follow `variant@<pool>`, and tells what it could run in `rungs@<pool>`.

    Args:
        replica: which runs the first of the rungs.
        model: its name.
        pool: the name of its pool.
        redis_url: where the fields stand.
        rungs: what it may run.
        make: loads a variant; called on a thread of its own.
        needed_bytes: memory that loading a variant takes beside the one that runs.
        free_bytes: memory that there is.
    """

    def __init__(
        self,
        replica: Switchable,
        *,
        model: str,
        pool: str,
        redis_url: str,
        rungs: Sequence[Rung],
        make: Callable[[str], Engine],
        needed_bytes: Callable[[str], int],
        free_bytes: Callable[[], int] = node.available_memory_bytes,
    ) -> None:
        self._engines = replica.engines
        self._key, self._pool = keys_of(model).pools, pool
        self._name = f"{model}@{pool}"
        self._redis = commands(redis_url, retries=0)
        self._rungs = tuple(rungs)
        self._make = make
        self._needed_bytes = needed_bytes
        self._free_bytes = free_bytes
        self._variant = rungs[0].variant
        self._spare: tuple[str, Engine] | None = None
        self._refused: set[str] = set()
        self._told_s = float("-inf")

    @property
    def variant(self) -> str:
        """What takes new work."""
        return self._variant

    @property
    def spare(self) -> str | None:
        """What is kept for the way back."""
        return self._spare[0] if self._spare else None

    async def run(self) -> None:
        """Follow until cancelled. While Redis is away, nothing changes.

        Raises:
            EngineLostError: no engine is left.
        """
        while True:
            try:
                await self.turn_to(await self._wanted())
            except RedisError as error:
                log.debug("%s goes on with %s: %s", self._name, self._variant, error)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _wanted(self) -> str | None:
        async with translated(f"reading the variant of {self._name}"):
            if time.monotonic() - self._told_s > _TELL_EVERY_S:  # again and again: a server may have been emptied
                await execute(self._redis, "HSET", self._key, rungs_field(self._pool), pack_rungs(self._rungs))
                self._told_s = time.monotonic()
            said = await execute(self._redis, "HGET", self._key, variant_field(self._pool))
        return None if said is None else str(said, "utf-8", "replace")

    async def turn_to(self, variant: str | None) -> None:
        """Run a variant from now on; None, one that is not there, or one that could not be loaded: go on as before.

        Raises:
            EngineLostError: no engine is left.
        """
        self._give_up_spare_if_short()
        if variant is None or variant == self._variant or variant in self._refused:
            return
        if variant not in {rung.variant for rung in self._rungs}:
            self._refuse(variant, f"it is none of {', '.join(rung.variant for rung in self._rungs)}")
            return
        started_s, before = time.monotonic(), self._variant
        if await self._change(variant):
            self._variant = variant
            log.info(
                "%s: %s takes over from %s after %.1f s", self._name, variant, before, time.monotonic() - started_s
            )

    async def _change(self, variant: str) -> bool:
        if self._spare is not None and self._spare[0] == variant:
            self._put(self._spare[1])
            return True
        if self._free_bytes() < self._needed_bytes(variant):
            self._drop_spare()
        if self._free_bytes() < self._needed_bytes(variant):
            return await self._swap(variant)
        engine = await self._loaded(variant)
        if engine is not None:
            self._put(engine)
        return engine is not None

    def _put(self, engine: Engine) -> None:
        """New work goes to `engine`; the one before finishes what it has, and is kept."""
        before = self._engines.put(engine)
        self._spare = None if before is None else (self._variant, before)

    async def _swap(self, variant: str) -> bool:
        """Load it in the place of the one that runs; jobs wait meanwhile."""
        await self._engines.vacate()
        node.give_memory_back()
        engine = await self._loaded(variant)
        again = await self._loaded(self._variant) if engine is None else None
        if engine is None and again is None:
            raise EngineLostError(f"{self._name} could load neither {variant} nor {self._variant} again")
        self._engines.put(engine or again)
        return engine is not None

    async def _loaded(self, variant: str) -> Engine | None:
        """The engine of a variant, or None if it cannot be loaded."""
        try:
            return await asyncio.to_thread(self._make, variant)
        except Exception as error:  # whatever a model can do wrong
            self._refuse(variant, f"{type(error).__name__}: {error}")
            return None

    def _refuse(self, variant: str, reason: str) -> None:
        self._refused.add(variant)
        log.error("%s stays with %s: %s cannot be loaded: %s", self._name, self._variant, variant, reason)

    def _give_up_spare_if_short(self) -> None:
        if self._spare is not None and self._free_bytes() < _LEAST_SPARE_BYTES:
            log.info("%s needs the memory of %s, which it kept for the way back", self._name, self._spare[0])
            self._drop_spare()

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare = None
            node.give_memory_back()

    async def close(self) -> None:
        """Let go of the connection, once `run` has ended."""
        await self._redis.aclose()
