"""Which models a replica has loaded, without Redis and without jobs: who goes, who waits, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from headrace.errors import ModelLoadError
from headrace_workers.engines.base import ItemError
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.hosting.model_cache import ModelCache
from support.hosting import MarkedEngine, config_of, make
from support.waiting import eventually

MIB = 1 << 20


@dataclass
class Lent:
    """What stands for a model's replica."""

    name: str
    config: EngineConfig
    engine: Any
    closed: bool = False

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def caching(
    *names: str, memory_bytes: int = 2 * MIB, make: Callable[[EngineConfig], Any] = make
) -> AsyncIterator[ModelCache]:
    configs = {name: config_of(name) for name in names}
    cache = ModelCache(configs, memory_bytes=memory_bytes, make=make, wrap=Lent)
    yield cache
    await cache.close()


async def used(cache: ModelCache, *names: str) -> None:
    """Each is used for a moment, one after the other."""
    for name in names:
        async with cache.lent(name) as lent:
            assert lent.name == name
            assert not lent.closed


def loaded(cache: ModelCache) -> list[str]:
    return [model.name for model in cache.loaded()]


class Slow:
    """Makes engines, each of which waits for the test."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, config: EngineConfig) -> MarkedEngine:
        self.begun.append(config.options["name"])
        assert self.go_on.wait(30)
        return make(config)


# -- which models there are -----------------------------------------------------------------------------------------


async def test_models_come_and_go_while_others_are_in_use() -> None:
    """Who is no more is unloaded; who stays the same stays where it is."""
    async with caching("a", "b") as cache, cache.lent("a") as in_use:
        await used(cache, "b")
        cache.replace({"a": config_of("a"), "c": config_of("c")})
        assert "b" not in cache
        await eventually(lambda: cache.used_bytes == MIB)
        await used(cache, "c", "a")
        assert not in_use.closed
        assert (cache.counts.loads, cache.counts.evictions) == (3, 1)


async def test_a_model_that_is_another_now_ends_with_its_last_batch() -> None:
    """Who has it goes on with it; who comes gets the new one, beside it if there is room."""
    async with caching("a", memory_bytes=3 * MIB) as cache:
        async with cache.lent("a") as old:
            cache.replace({"a": config_of("a", size=2 * MIB)})
            async with cache.lent("a") as new:
                assert (old.engine.info.details["bytes"], new.engine.info.details["bytes"]) == (MIB, 2 * MIB)
                assert loaded(cache) == ["a"]
                assert cache.used_bytes == 3 * MIB
            assert not old.closed
        await eventually(lambda: old.closed)
        assert cache.used_bytes == 2 * MIB


async def test_the_new_one_waits_for_the_old_where_there_is_no_room_for_both() -> None:
    """And has its place as soon as its last batch is over."""
    async with caching("a", memory_bytes=2 * MIB) as cache:
        async with cache.lent("a") as old:
            cache.replace({"a": config_of("a", size=2 * MIB)})
            coming = asyncio.create_task(used(cache, "a"))
            await eventually(lambda: cache._seats["a"].loading is not None)
            assert not old.closed
        await coming
        assert old.closed
        assert cache.used_bytes == 2 * MIB


async def test_who_waits_for_a_model_that_goes_still_gets_it() -> None:
    """The batch was taken for it."""
    slow = Slow()
    async with caching("a", make=slow) as cache:
        waiting = asyncio.create_task(used(cache, "a"))
        await eventually(lambda: bool(slow.begun))
        cache.replace({})
        slow.go_on.set()
        await waiting
        await eventually(lambda: cache.used_bytes == 0)


async def test_closing_does_not_wait_for_who_goes() -> None:
    """A batch that never ends keeps nobody."""
    async with caching("a") as cache:
        lent = await cache.lent("a").__aenter__()
        cache.replace({})
    assert lent.closed


# -- who goes -------------------------------------------------------------------------------------------------------


async def test_who_is_idle_goes_before_who_was_used_longer_ago_and_is_in_use() -> None:
    async with caching("a", "b", "c") as cache, cache.lent("a") as in_use:
        await used(cache, "b", "c")
        assert not in_use.closed
        assert loaded(cache) == ["a", "c"]


async def test_who_has_just_been_loaded_is_not_the_next_to_go() -> None:
    """Loading is a use: else of two that came for the first time the later would go for the third."""
    async with caching("a", "b", "c") as cache:
        await used(cache, "a", "b", "a", "c", "b")
        assert loaded(cache) == ["c", "b"]


async def test_a_model_that_went_is_closed_and_one_that_fits_to_the_byte_is_kept() -> None:
    async with caching("a", "b", "c") as cache:
        async with cache.lent("a") as first:
            pass
        await used(cache, "b")
        assert not first.closed
        await used(cache, "c")
        assert first.closed
        assert cache.used_bytes == 2 * MIB
        assert (cache.counts.loads, cache.counts.evictions) == (3, 1)


async def test_who_is_to_go_is_not_told_of_as_loaded() -> None:
    """Else routers would go on sending batches there."""
    async with caching("a", "b", memory_bytes=MIB) as cache:
        async with cache.lent("a"):
            newcomer = asyncio.create_task(used(cache, "b"))
            await eventually(lambda: cache._seats["a"].leaving)
            assert loaded(cache) == []
            assert cache.used_bytes == MIB
        await newcomer
        await used(cache, "a")
        assert loaded(cache) == ["a"], "who came back stays until others want its room"


async def test_room_is_made_for_what_a_model_turned_out_to_take() -> None:
    """Its files said less the first time; the second time there is room before it is loaded."""
    held: list[int] = []
    sizes = {"a": MIB, "b": MIB, "large": 2 * MIB}
    there: list[ModelCache] = []

    def sized(config: EngineConfig) -> MarkedEngine:
        name = config.options["name"]
        if name == "large":
            held.append(there[0].used_bytes)
        return MarkedEngine(name, sizes[name])

    async with caching(*sizes, memory_bytes=3 * MIB, make=sized) as cache:
        there.append(cache)
        await used(cache, "a", "b", "large")
        assert loaded(cache) == ["b", "large"]
        await used(cache, "a", "b", "large")
        assert held == [2 * MIB, MIB]


# -- who waits ------------------------------------------------------------------------------------------------------


async def test_loads_go_one_after_the_other() -> None:
    """Only then is it known what each takes."""
    slow = Slow()
    async with caching("a", "b", make=slow) as cache:
        waiting = [asyncio.create_task(used(cache, name)) for name in "ab"]
        await eventually(lambda: slow.begun == ["a"] and cache._seats["b"].loading is not None)
        assert cache._one_load.locked()
        slow.go_on.set()
        await asyncio.gather(*waiting)
        assert slow.begun == ["a", "b"]


async def test_nobody_is_unloaded_before_those_it_was_loaded_for_have_had_it() -> None:
    """All wait from the beginning, and there is room for one: each is loaded once, the second time round, too."""
    async with caching("a", "b", memory_bytes=MIB) as cache:
        for loads in (2, 4):
            async with asyncio.timeout(10):
                await asyncio.gather(*[used(cache, name) for name in ("ab" if loads == 2 else "aabb") * 3])
            assert cache.counts.loads <= loads
            assert cache.counts.evictions == cache.counts.loads - 1


async def test_a_newcomer_has_its_turn_before_the_next_batch_of_who_was_there() -> None:
    order = list[str]()

    async def noted(name: str) -> None:
        async with cache.lent(name):
            order.append(name)

    async with caching("old", "new", memory_bytes=MIB) as cache:
        async with cache.lent("old"):
            newcomer = asyncio.create_task(noted("new"))
            await eventually(lambda: cache._seats["old"].leaving)
            later = asyncio.create_task(noted("old"))
            await eventually(lambda: cache._seats["old"].waiting)
            assert order == []
        await asyncio.gather(newcomer, later)
    assert order == ["new", "old"]


async def test_who_stops_waiting_stops_no_load_that_others_wait_for() -> None:
    slow = Slow()
    async with caching("a", make=slow) as cache:
        leaves, stays = (asyncio.create_task(used(cache, "a")) for _ in range(2))
        await eventually(lambda: slow.begun == ["a"] and cache._seats["a"].waiting == 2)
        leaves.cancel()
        await asyncio.wait({leaves})
        slow.go_on.set()
        await stays
        assert (cache.counts.loads, cache.counts.failed_loads) == (1, 0)


async def test_a_model_for_which_nobody_waits_any_more_may_go() -> None:
    """It was loaded for a batch that was called off: a newcomer does not wait for that one's turn."""
    slow = Slow()
    async with caching("a", "b", memory_bytes=MIB, make=slow) as cache:
        called_off = asyncio.create_task(used(cache, "a"))
        await eventually(lambda: slow.begun == ["a"])
        called_off.cancel()
        await asyncio.wait({called_off})
        slow.go_on.set()
        async with asyncio.timeout(10):
            await used(cache, "b")
        assert loaded(cache) == ["b"]


# -- what cannot be loaded --------------------------------------------------------------------------------------------


async def test_each_failure_is_waited_for_twice_as_long_and_a_success_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, broken, tried = [0.0], [True], list[float]()

    def maybe(config: EngineConfig) -> MarkedEngine:
        tried.append(now_s[0])
        if broken[0]:
            raise ModelLoadError("no such folder")
        return make(config)

    async def until(end_s: float) -> None:
        """Ask once a second."""
        while now_s[0] < end_s:
            with suppress(ItemError):
                await used(cache, "a")
            now_s[0] += 1.0

    async with caching("a", "b", memory_bytes=MIB, make=maybe) as cache:
        monkeypatch.setattr("headrace_workers.hosting.model_cache.time.monotonic", lambda: now_s[0])
        await until(300.0)
        assert tried == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]
        assert cache.counts.failed_loads == 10
        broken[0] = False
        now_s[0] = 303.0
        await used(cache, "a", "b")  # and a has gone for b
        broken[0] = True
        tried.clear()
        now_s[0] = 400.0
        await until(402.0)
        assert tried == [400.0, 401.0]


async def test_a_model_that_can_never_fit_is_not_tried_again() -> None:
    tried = list[str]()

    def huge(config: EngineConfig) -> MarkedEngine:
        tried.append(config.options["name"])
        return MarkedEngine(config.options["name"], 3 * MIB)

    async with caching("huge", make=huge) as cache:
        for _ in range(2):
            with pytest.raises(ItemError, match="3,145,728 bytes; a replica of its pool has 2,097,152"):
                await used(cache, "huge")
        assert tried == ["huge"]
        assert cache.used_bytes == 0


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_hits_are_batches_whose_model_was_there() -> None:
    async with caching("a") as cache:
        await used(cache, "a", "a", "a")
        assert (cache.counts.hits, cache.counts.loads) == (2, 1)


async def test_closing_ends_loads_and_lets_go_of_what_is_there() -> None:
    slow = Slow()
    slow.go_on.set()
    async with caching("a", "b", make=slow) as cache:
        async with cache.lent("a") as there:
            pass
        slow.go_on.clear()
        waiting = asyncio.create_task(used(cache, "b"))
        await eventually(lambda: slow.begun == ["a", "b"])
        loading = cache._seats["b"].loading
        threading.Timer(0.1, slow.go_on.set).start()
    assert there.closed
    assert loading is not None
    assert loading.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await waiting
