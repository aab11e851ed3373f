"""A replica that follows what its pool is told to run: which variants there are, and how it changes between two."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from headrace import AsyncClient, Job, Result
from headrace.errors import ArtifactError, ModelLoadError
from headrace.keys import keys_of
from headrace.messages.rungs import Rung, rungs_field, unpack_rungs, variant_field
from headrace.server.connection import commands, execute
from headrace.tasks import end_task
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.artifacts.artifact import Artifact
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.models.source import ModelSource, find_source
from headrace_workers.replicas.engine_shelf import EngineShelf
from headrace_workers.variants.adaptive import AdaptiveModel
from headrace_workers.variants.choice import WantedVariant, loading_bytes, rungs_of
from headrace_workers.variants.switch import EngineLostError, VariantSwitch
from support.bad_days import GatedEngine
from support.decoders import FakeDecoder, words_of
from support.service import PlainService
from support.variants import FAST, FULL, two_variants
from support.waiting import eventually

MODEL, POOL = "m", "cpu"
RUNGS = (Rung("slow", 1.0, 1.0), Rung("fast", 0.99, 3.0), Rung("faster", 0.98, 5.0))
ROOM = 1 << 40


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two variants of a tiny encoder."""
    return two_variants(tmp_path_factory.mktemp("variants"))


# -- which there are -------------------------------------------------------------------------------------------


def rungs(artifact: Artifact, *wanted: WantedVariant, metrics: dict[str, float] | None = None) -> Sequence[Rung]:
    manifest = artifact.manifest
    if metrics is not None:
        manifest = manifest.model_copy(update={"metrics": metrics})
    source = ModelSource("tiny", artifact.path, replace(artifact, manifest=manifest))
    return rungs_of(source, wanted, device="cpu", flags=set())


def test_an_artifact_says_what_its_variants_cost_and_bring(artifact: Artifact) -> None:
    expected = (Rung(FULL, 1.0, 1.0), Rung(FAST, 0.99, 3.0))
    assert rungs(artifact) == expected
    assert rungs(artifact, WantedVariant(FULL), WantedVariant(FAST)) == expected


def test_what_the_owner_says_comes_first(artifact: Artifact) -> None:
    wanted = WantedVariant(FULL, quality=0.8, speed=10), WantedVariant(FAST, quality=0.76)
    assert rungs(artifact, *wanted, metrics={f"{FAST}.speedup": 25.0}) == (Rung(FULL, 1, 1), Rung(FAST, 0.95, 2.5))


@pytest.mark.parametrize(
    ("wanted", "metrics", "error", "words"),
    [
        ([WantedVariant("tiny")], None, ArtifactError, "has no variant 'tiny'; it has fp32, int8"),
        ([WantedVariant(FULL)], None, ModelLoadError, "leaves 1 of its variants .* adaptive needs two"),
        (
            [WantedVariant(FAST), WantedVariant(FULL)],
            None,
            ModelLoadError,
            "from the best to the fastest: fp32 is 0.33",
        ),
        ([], {}, ModelLoadError, "does not say the quality and speed of its variant fp32; say it in adaptive.variants"),
        ([], {"fp32.metric_drop": 0, "fp32.speedup": 1, "int8.metric_drop": 0}, ModelLoadError, "the speed of its var"),
        ([], {f"{v}.{m}": 0.5 for v in (FULL, FAST) for m in ("metric_drop", "speedup")}, ModelLoadError, "leaves 1"),
    ],
)
def test_what_cannot_be_chosen_between_is_said_at_the_start(
    artifact: Artifact, wanted: list[WantedVariant], metrics: dict[str, float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rungs(artifact, *wanted, metrics=metrics)


def test_a_plain_model_has_no_variants(artifact: Artifact) -> None:
    with pytest.raises(ModelLoadError, match=r"is no artifact: only an artifact has variants"):
        rungs_of(ModelSource("plain", artifact.path, None), (), device="cpu", flags=set())


def test_loading_needs_more_than_the_files_have(artifact: Artifact) -> None:
    source = find_source(artifact.path)
    full, fast = (loading_bytes(source, name, cache_bytes=0) for name in (FULL, FAST))
    assert full > fast > 0
    assert loading_bytes(source, FAST, cache_bytes=1000) == fast + 1000


# -- a service whose replica changes -----------------------------------------------------------------------------


class Variants:
    """What loads a variant, or cannot."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        self.free_bytes = ROOM

    def __call__(self, variant: str) -> Any:
        if variant in self.broken:
            raise ModelLoadError(f"{variant} is broken")
        self.loaded.append(variant)
        return self._make(variant)


@asynccontextmanager
async def changing(
    url: str, variants: Variants, *, rungs: Sequence[Rung] = RUNGS, **policy: Any
) -> AsyncIterator[tuple[PlainService, VariantSwitch]]:
    """A service of one replica, which nothing tells to change yet."""
    first = variants(rungs[0].variant)
    async with PlainService(url, MODEL, first, policy=RoutingPolicy(block_ms=50, **policy)) as service:
        switch = VariantSwitch(
            service.replicas["replica-0"],
            model=MODEL,
            pool=POOL,
            redis_url=url,
            rungs=rungs,
            make=variants,
            needed_bytes=lambda _: 1,
            free_bytes=lambda: variants.free_bytes,
        )
        try:
            yield service, switch
        finally:
            await switch.close()


def named(variant: str, *, is_open: bool = True) -> GatedEngine:
    engine = GatedEngine(is_open=is_open)
    engine.info = replace(engine.info, variant=variant)
    return engine


async def answer(client: AsyncClient, text: str = "the mill wheel turns") -> Result:
    result = await client.run(Job(model=MODEL, input=text), timeout_s=20)
    result.unwrap()
    return result


async def test_it_follows_what_is_written_and_tells_what_it_could_run(redis_url: str, artifact: Artifact) -> None:
    """Real engines of a real artifact: answers differ by what quantizing cost, and name the variant that made them."""
    model = AdaptiveModel(EngineConfig(model=str(artifact.path)), (), "cpu")
    variants = Variants(model.make)
    admin = commands(redis_url)
    async with (
        changing(redis_url, variants, rungs=model.rungs) as (_, switch),
        AsyncClient(redis_url) as client,
    ):
        task = asyncio.create_task(switch.run())
        before = await answer(client)
        await execute(admin, "HSET", keys_of(MODEL).pools, variant_field(POOL), FAST)
        await eventually(lambda: switch.variant == FAST)
        after = await answer(client)
        told = await execute(admin, "HGET", keys_of(MODEL).pools, rungs_field(POOL))
        await end_task(task)
    await admin.aclose()

    assert (before.variant, after.variant) == (FULL, FAST)
    one, other = before.output.numpy(), after.output.numpy()
    assert 0 < float(((one - other) ** 2).sum() / (one**2).sum()) < 0.01
    assert unpack_rungs(told) == rungs(artifact)


async def test_the_way_back_takes_no_loading(redis_url: str) -> None:
    variants = Variants(named)
    async with changing(redis_url, variants) as (_, switch), AsyncClient(redis_url) as client:
        seen = []
        for variant in ("fast", "slow", "fast", None, "fast"):
            await switch.turn_to(variant)
            seen.append((await answer(client)).variant)
    assert seen == ["fast", "slow", "fast", "fast", "fast"]
    assert variants.loaded == ["slow", "fast"]


async def test_a_batch_ends_with_the_engine_it_began_with(redis_url: str) -> None:
    slow, fast = named("slow", is_open=False), named("fast")
    variants = Variants({"slow": slow, "fast": fast}.__getitem__)
    async with changing(redis_url, variants) as (_, switch), AsyncClient(redis_url) as client:
        first = asyncio.create_task(answer(client, "first"))
        await eventually(lambda: slow.prepared == ["first"])
        await switch.turn_to("fast")
        slow.open()  # one thread computes, so the second waits for the first
        second = await answer(client, "second")
        assert ((await first).variant, second.variant) == ("slow", "fast")
    assert (slow.ran, fast.ran) == (["first"], ["second"])


async def test_what_is_kept_goes_when_memory_is_short(redis_url: str) -> None:
    variants = Variants(named)
    async with changing(redis_url, variants) as (_, switch):
        await switch.turn_to("fast")
        assert switch.spare == "slow"
        variants.free_bytes = 100 << 20
        await switch.turn_to("fast")
        assert switch.spare is None
        await switch.turn_to("slow")
    assert variants.loaded == ["slow", "fast", "slow"]


async def test_without_room_for_both_one_takes_the_others_place(redis_url: str) -> None:
    """Nobody loses anything: the batch that runs ends, those that come wait for the new one."""
    slow, loading = named("slow", is_open=False), threading.Event()

    def make(variant: str) -> Any:
        if variant == "slow":
            return slow
        assert loading.wait(20)
        return named(variant)

    variants = Variants(make)
    async with changing(redis_url, variants) as (service, switch), AsyncClient(redis_url) as client:
        first = asyncio.create_task(answer(client, "first"))
        await eventually(lambda: slow.prepared == ["first"])
        variants.free_bytes = 0
        changed = asyncio.create_task(switch.turn_to("fast"))
        shelf = service.replicas["replica-0"].engines
        await eventually(lambda: not shelf.in_place)
        second = asyncio.create_task(answer(client, "second"))
        assert "fast" not in variants.loaded, "the slow one is still at work, and in memory"
        slow.open()
        assert (await first).variant == "slow"
        await eventually(lambda: "fast" in variants.loaded)
        assert not second.done()
        loading.set()
        await changed
        assert (await second).variant == "fast"
    assert (switch.variant, switch.spare, slow.ran) == ("fast", None, ["first"])


# -- what goes wrong ------------------------------------------------------------------------------------------


async def test_what_cannot_be_loaded_is_said_once(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    variants = Variants(named)
    variants.broken = {"fast"}
    async with changing(redis_url, variants) as (_, switch), AsyncClient(redis_url) as client:
        for _ in range(3):
            await switch.turn_to("fast")
            await switch.turn_to("of another config")
        assert (await answer(client)).variant == "slow"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        "m@cpu stays with slow: fast cannot be loaded: ModelLoadError: fast is broken",
        "m@cpu stays with slow: of another config cannot be loaded: it is none of slow, fast, faster",
    ]


async def test_what_cannot_be_loaded_in_the_others_place_brings_that_back(redis_url: str) -> None:
    variants = Variants(named)
    async with changing(redis_url, variants) as (_, switch), AsyncClient(redis_url) as client:
        variants.broken, variants.free_bytes = {"fast"}, 0
        await switch.turn_to("fast")
        assert (await answer(client)).variant == "slow"
    assert variants.loaded == ["slow", "slow"]


async def test_a_replica_that_has_no_engine_left_says_so(redis_url: str) -> None:
    variants = Variants(named)
    async with changing(redis_url, variants) as (service, switch):
        variants.broken, variants.free_bytes = {"slow", "fast"}, 0
        with pytest.raises(EngineLostError, match="could load neither fast nor slow again"):
            await switch.turn_to("fast")
        service.replicas["replica-0"].engines.put(named("slow"))


async def test_while_redis_is_away_nothing_changes() -> None:
    class Nothing:
        engines = EngineShelf(named("slow"))

    switch = VariantSwitch(
        Nothing(),
        model=MODEL,
        pool=POOL,
        redis_url="unix:///nowhere.sock",
        rungs=RUNGS,
        make=named,
        needed_bytes=lambda _: 1,
    )
    task = asyncio.create_task(switch.run())
    ended, _ = await asyncio.wait({task}, timeout=0.1)
    assert not ended
    await end_task(task)
    await switch.close()


# -- engines that generate --------------------------------------------------------------------------------------


async def test_what_is_being_generated_ends_where_it_began(redis_url: str) -> None:
    """Two engines step side by side until the first has no job any more; its thread ends, and comes back with it."""
    made: dict[str, FakeDecoder] = {}

    def make(variant: str) -> FakeDecoder:
        made[variant] = FakeDecoder(pause_at=3 if variant == "slow" else None)
        made[variant].info = replace(made[variant].info, variant=variant)
        return made[variant]

    variants = Variants(make)
    async with changing(redis_url, variants, jobs_per_replica=8) as (service, switch), AsyncClient(redis_url) as client:
        replica: Any = service.replicas["replica-0"]
        first = asyncio.create_task(answer(client, "first"))
        await eventually(lambda: made["slow"].running and made["slow"].running[0].positions == [3])
        await switch.turn_to("fast")
        second = await answer(client, "second")
        assert len(replica._loops._loops) == 2
        assert not first.done()
        made["slow"].go_on()
        answers = [await first, second]
        await eventually(lambda: len(replica._loops._loops) == 1 and not replica._loops._ending)
        await switch.turn_to("slow")
        answers.append(await answer(client, "third"))
        await eventually(lambda: len(replica._loops._loops) == 1 and not replica._loops._ending)

    assert [one.variant for one in answers] == ["slow", "fast", "slow"]
    assert [one.output["choices"][0]["text"] for one in answers] == [
        words_of(p, 8) for p in ("first", "second", "third")
    ]
    assert variants.loaded == ["slow", "fast"]
