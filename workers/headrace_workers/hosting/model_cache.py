"""The models that a replica has loaded, within so many bytes: loaded when they are wanted, gone when others are.

Who was used longest ago makes room. A model in whose engine a batch runs is never taken away under it; where all are
in use, the one that was used longest ago gets nothing new until it is free, so that a newcomer does not wait for ever.
Loads go one after the other, since only then is it known what each takes, and beside the batches of other models.
Which models there are may change at any time: one that is no more, or is another now, ends with its last batch.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple

from headrace.errors import FailureCode
from headrace.messages.host import LoadedModel
from headrace.tasks import end_task
from headrace_workers import node
from headrace_workers.engines.base import Engine, ItemError
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.hosting.model_bytes import expected_bytes, loaded_bytes, resident_bytes

__all__ = ["CacheCounts", "ModelCache"]

log = logging.getLogger("headrace.host")

_RETRY_S: Final = 1.0
"""How long after the first failure to load a model it is tried again; twice as long after each that follows."""
_RETRY_MOST_S: Final = 60.0


@dataclass(slots=True)
class CacheCounts:
    """What happened since the process started."""

    hits: int = 0
    """Batches whose model was there."""
    loads: int = 0
    failed_loads: int = 0
    evictions: int = 0


class _Failure(NamedTuple):
    """Why a model is not there: what each of its jobs is told."""

    message: str
    hint: str
    retryable: bool

    def again(self) -> ItemError:
        """A fresh exception: one that is raised again and again would keep every traceback."""
        return ItemError(FailureCode.POOL_FAILED, self.message, hint=self.hint, retryable=self.retryable)


@dataclass(slots=True, eq=False)
class _Seat:
    """A model, loaded or not."""

    name: str
    config: EngineConfig
    replica: Any = None
    loading: asyncio.Task[None] | None = None
    waiting: int = 0
    """Batches that wait until it is loaded."""
    running: int = 0
    """Batches that have it."""
    owed: int = 0
    """Of those that wait, for how many it was loaded: they have it before it goes again."""
    leaving: bool = False
    used: int = 0
    """A number that grows with each use."""
    bytes: int = 0
    load_s: float = 0.0
    ran_s: float = 0.0
    failure: _Failure | None = None
    failures: int = 0
    retry_s: float = float("-inf")

    @property
    def idle(self) -> bool:
        """Whether nobody has it, or waits for it."""
        return not self.running and not self.waiting

    @property
    def free_to_go(self) -> bool:
        """Whether it may be unloaded now."""
        return not self.running and not self.owed

    @property
    def lendable(self) -> bool:
        """Whether a batch may have it now."""
        return self.replica is not None and (self.owed > 0 or not self.leaving)


class ModelCache:
    """Lends models to batches.

    Args:
        configs: the engine of each model.
        memory_bytes: for all that are loaded.
        make: makes an engine; on a thread of its own.
        wrap: makes of a model's name, its configuration and its engine what is lent: something with an async `close`.
    """

    def __init__(
        self,
        configs: Mapping[str, EngineConfig],
        *,
        memory_bytes: int,
        make: Callable[[EngineConfig], Engine],
        wrap: Callable[[str, EngineConfig, Engine], Any],
    ) -> None:
        self.memory_bytes = memory_bytes
        self.counts = CacheCounts()
        self._make = make
        self._wrap = wrap
        self._seats = {name: _Seat(name, config) for name, config in configs.items()}
        self._retired: dict[_Seat, asyncio.Task[None]] = {}
        """Seats of models that are no more, or are another now, until they are unloaded."""
        self._ages = count(1)
        self._one_load = asyncio.Lock()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-load")

    def __contains__(self, name: str) -> bool:
        return name in self._seats

    def replace(self, configs: Mapping[str, EngineConfig]) -> None:
        """Have these models, and no others, from now on. Batches that have, or wait for, one that goes still get it."""
        for name, seat in list(self._seats.items()):
            if configs.get(name) != seat.config:
                del self._seats[name]
                self._retired[seat] = asyncio.create_task(self._retire(seat), name=f"retire-{name}")
        for name, config in configs.items():
            if name not in self._seats:
                self._seats[name] = _Seat(name, config)

    @property
    def used_bytes(self) -> int:
        """Of the models that are loaded."""
        return sum(seat.bytes for seat in self._all_seats() if seat.replica is not None)

    def _all_seats(self) -> list[_Seat]:
        return [*self._seats.values(), *self._retired]

    def loaded(self) -> list[LoadedModel]:
        """The models that are there, the one used last at the end."""
        seats = sorted((seat for seat in self._seats.values() if seat.replica is not None), key=lambda seat: seat.used)
        return [LoadedModel(seat.name, seat.bytes, seat.load_s, seat.ran_s) for seat in seats if not seat.leaving]

    def ran(self, name: str, seconds: float) -> None:
        """Jobs of a model ran for so long. By one thread at a time."""
        if (seat := self._seats.get(name)) is not None:
            seat.ran_s += seconds

    @asynccontextmanager
    async def lent(self, name: str) -> AsyncIterator[Any]:
        """A model, for the time of the context; it is loaded first if need be.

        Raises:
            ItemError: it cannot be loaded. For a while after that it is not tried again.
        """
        seat = self._seats[name]
        self.counts.hits += seat.lendable
        await self._wait_for(seat)
        seat.running += 1
        seat.used = next(self._ages)
        try:
            yield seat.replica
        finally:
            seat.running -= 1
            self._changed.set()

    async def _wait_for(self, seat: _Seat) -> None:
        seat.waiting += 1
        try:
            while not seat.lendable:
                if seat.failure is not None and time.monotonic() < seat.retry_s:
                    raise seat.failure.again()
                if seat.loading is None:
                    seat.loading = asyncio.create_task(self._load(seat), name=f"load-{seat.name}")
                await asyncio.shield(seat.loading)  # who stops waiting does not stop the others
        finally:
            seat.waiting -= 1
            seat.owed = min(seat.owed, seat.waiting)
            self._changed.set()

    # -- loading ------------------------------------------------------------------------------------------------

    async def _load(self, seat: _Seat) -> None:
        """Load one model, or note why it cannot be had."""
        try:
            async with self._one_load:
                await self._load_now(seat)
        except Exception as error:
            self._failed(seat, error)
        else:
            seat.failure, seat.failures = None, 0
        finally:
            seat.loading = None
            self._changed.set()

    async def _load_now(self, seat: _Seat) -> None:
        expected = seat.bytes or await self._on_thread(expected_bytes, seat.config)
        await self._make_room(seat.name, expected)
        before, started_s = resident_bytes(), time.monotonic()
        engine = await self._on_thread(self._make, seat.config)
        grown = resident_bytes() - before
        seat.bytes = loaded_bytes(engine.info, expected=expected, grown=grown)
        try:
            await self._make_room(seat.name, seat.bytes)
        except ItemError:
            del engine
            await self._on_thread(_give_memory_back)
            raise
        seat.load_s = time.monotonic() - started_s
        seat.replica = self._wrap(seat.name, seat.config, engine)
        seat.owed, seat.used = seat.waiting, next(self._ages)
        self.counts.loads += 1
        log.info("loaded %s: %d bytes in %.1f s", seat.name, seat.bytes, seat.load_s)

    async def _make_room(self, name: str, needed_bytes: int) -> None:
        if needed_bytes > self.memory_bytes:
            raise ItemError(
                FailureCode.POOL_FAILED,
                f"{name} takes {needed_bytes:,} bytes; a replica of its pool has {self.memory_bytes:,} for its models",
                hint="raise memory_bytes of the shared pool, or give the model a pool of its own",
            )
        while self.used_bytes + needed_bytes > self.memory_bytes:
            victim = self._longest_unused()
            victim.leaving = True
            while not victim.free_to_go:
                self._changed.clear()
                await self._changed.wait()
            await self._unload(victim)

    def _longest_unused(self) -> _Seat:
        """Who makes room: of those that nobody uses, if there are any."""
        there = [seat for seat in self._all_seats() if seat.replica is not None]
        return min(there, key=lambda seat: (not seat.idle, seat.used))

    async def _retire(self, seat: _Seat) -> None:
        """Unload it when nobody has it any more, or waits for it."""
        while not seat.idle or seat.loading is not None:
            self._changed.clear()
            await self._changed.wait()
        async with self._one_load:
            if seat.replica is not None:
                await self._unload(seat)
        del self._retired[seat]

    async def _unload(self, seat: _Seat) -> None:
        replica, seat.replica = seat.replica, None
        seat.leaving = False
        await replica.close()
        del replica
        await self._on_thread(_give_memory_back)
        self.counts.evictions += 1
        log.info("unloaded %s: %d bytes", seat.name, seat.bytes)

    def _failed(self, seat: _Seat, error: Exception) -> None:
        seat.failures += 1
        self.counts.failed_loads += 1
        pause_s = min(_RETRY_MOST_S, _RETRY_S * 2 ** (seat.failures - 1))
        if isinstance(error, ItemError):
            seat.failure, seat.retry_s = _Failure(error.message, error.hint, error.retryable), float("inf")
        else:
            message = f"{seat.name} cannot be loaded: {type(error).__name__}: {error}"
            seat.failure = _Failure(message, f"it is tried again after {pause_s:g} s", retryable=True)
            seat.retry_s = time.monotonic() + pause_s
        log.error("%s (failure %d)", seat.failure.message, seat.failures)

    async def _on_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def close(self) -> None:
        """Let go of every model."""
        for task in self._retired.values():
            await end_task(task)
        for seat in self._all_seats():
            if seat.loading is not None:
                seat.loading.cancel()
                await asyncio.wait({seat.loading})
            if seat.replica is not None:
                await seat.replica.close()
        self._thread.shutdown()


def _give_memory_back() -> None:
    """To the system, from modules that refer to each other in circles, too."""
    gc.collect()
    torch = sys.modules.get("torch")  # who has not imported it has nothing on a GPU
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    node.give_memory_back()
