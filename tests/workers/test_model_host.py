"""One replica, many models: loaded on demand, gone when others need the room, and never mixed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace import AsyncClient, Job
from headrace.errors import DecodeError, ModelLoadError
from headrace.messages import BatchOutcome, Fate, JobOutcomes, RetryPolicy
from headrace.messages.host import HostReply
from headrace_workers.engines.base import EngineInfo
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.hosting.compute_turns import ComputeTurns
from headrace_workers.hosting.model_bytes import LEAST_BYTES, expected_bytes, loaded_bytes
from headrace_workers.hosting.model_host import ModelHost
from support.by_hand import HandService
from support.decoders import words_of
from support.hosting import MarkedEngine, batch_of, config_of, make
from support.waiting import eventually

MIB = 1 << 20


@asynccontextmanager
async def hosting(
    url: str, *names: str, memory_bytes: int = 2 * MIB, make: Callable[[EngineConfig], Any] = make, **options: Any
) -> AsyncIterator[Hosting]:
    """A host of some models, and their lanes."""
    host = ModelHost(
        {name: config_of(name, **options) for name in names}, redis_url=url, memory_bytes=memory_bytes, make=make
    )
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(url))
        services = {name: await stack.enter_async_context(HandService(url, name)) for name in names}
        stack.push_async_callback(host.close)
        yield Hosting(host, client, services)


class Hosting:
    def __init__(self, host: ModelHost, client: AsyncClient, services: dict[str, HandService]) -> None:
        self.host, self.client, self.services = host, client, services

    async def send(self, model: str, *, jobs: int = 1, alone: bool = False, **fields: Any) -> HostReply:
        """Submit jobs of a model and have the host run them, as one batch."""
        await self.client.submit_many([Job(model=model, input=f"{model} {n}", **fields) for n in range(jobs)])
        return HostReply.from_bytes(await self.host.run(await batch_of(self.services[model], alone=alone)))


def fates(reply: HostReply) -> list[int]:
    return list(BatchOutcome.from_bytes(reply.message).fates)


def names(reply: HostReply) -> list[str]:
    return [model.name for model in reply.loaded]


# -- the tutorial: what a host is for ---------------------------------------------------------------------------


async def test_a_model_is_loaded_when_a_batch_of_it_comes(redis_url: str) -> None:
    async with hosting(redis_url, "a", "b") as there:
        reply = await there.send("a", jobs=3)
        assert fates(reply) == [Fate.ANSWERED] * 3
        assert names(reply) == ["a"]
        await there.send("a")
        info = there.host.info
        assert (info["loads"], info["hits"], info["evictions"]) == (1, 1, 0)
        assert (info["used_bytes"], info["memory_bytes"]) == (MIB, 2 * MIB)


async def test_who_was_used_longest_ago_makes_room(redis_url: str) -> None:
    """There is room for two."""
    async with hosting(redis_url, "a", "b", "c") as there:
        await there.send("a")
        await there.send("b")
        await there.send("a")
        assert names(await there.send("c")) == ["a", "c"]
        assert there.host.info["evictions"] == 1
        assert names(await there.send("b")) == ["c", "b"]


async def test_each_answer_is_of_its_own_model(redis_url: str) -> None:
    """The engines fail where they are given another's jobs."""
    async with hosting(redis_url, *"abcd", memory_bytes=3 * MIB) as there:
        jobs = [Job(model=name, input=f"{name} x") for name in "abcdabcd"]
        await there.client.submit_many(jobs)
        await asyncio.gather(*[there.host.run(await batch_of(there.services[name])) for name in "abcd"])
        for job in jobs:
            result = await there.client.result(job.id, model=job.model)
            assert (result.unwrap(), result.variant) == (f"{job.model} x by {job.model}", job.model)


async def test_models_of_many_sizes_share_the_memory_by_bytes(redis_url: str) -> None:
    sizes = {"small": MIB, "middle": 2 * MIB, "large": 4 * MIB}
    host_make = lambda config: MarkedEngine(config.options["name"], sizes[config.options["name"]])  # noqa: E731
    async with hosting(redis_url, *sizes, memory_bytes=4 * MIB, make=host_make) as there:
        await there.send("small")
        assert names(await there.send("middle")) == ["small", "middle"]
        assert names(await there.send("large")) == ["large"]
        assert names(await there.send("small")) == ["small"]


# -- loading ------------------------------------------------------------------------------------------------------


async def test_a_model_is_loaded_once_however_many_wait_for_it_and_others_go_on(redis_url: str) -> None:
    loading, go_on, made = threading.Event(), threading.Event(), list[str]()

    def slowly(config: EngineConfig) -> MarkedEngine:
        made.append(config.options["name"])
        if config.options["name"] == "slow":
            loading.set()
            assert go_on.wait(30)
        return make(config)

    async with hosting(redis_url, "quick", "slow", make=slowly) as there:
        await there.send("quick")
        waiting = [asyncio.create_task(there.send("slow")) for _ in range(3)]
        await eventually(loading.is_set)
        assert fates(await there.send("quick")) == [Fate.ANSWERED]
        assert not any(task.done() for task in waiting)
        go_on.set()
        await asyncio.gather(*waiting)
        assert made == ["quick", "slow"]


async def test_a_model_larger_than_the_memory_is_an_error_of_its_own_jobs(redis_url: str) -> None:
    sizes = {"small": MIB, "huge": 5 * MIB}
    host_make = lambda config: MarkedEngine(config.options["name"], sizes[config.options["name"]])  # noqa: E731
    async with hosting(redis_url, *sizes, make=host_make) as there:
        await there.send("small")
        for job_id in ("first", "second"):
            await there.send("huge", id=job_id)
            failure = (await there.client.result(job_id, model="huge")).failure
            assert failure is not None
            assert "huge takes 5,242,880 bytes; a replica of its pool has 2,097,152" in failure.message
            assert not failure.retryable
        assert there.host.info["failed_loads"] == 1  # and it is not tried again
        assert fates(await there.send("small")) == [Fate.ANSWERED]


async def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_while(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    broken = [True]

    def maybe(config: EngineConfig) -> MarkedEngine:
        if broken[0] and config.options["name"] == "b":
            raise ModelLoadError("no such folder")
        return make(config)

    async with hosting(redis_url, "a", "b", make=maybe) as there:
        monkeypatch.setattr("headrace_workers.hosting.model_cache.time.monotonic", lambda: now_s[0])
        await there.send("b", id="x")
        failure = (await there.client.result("x", model="b")).failure
        assert failure is not None
        assert failure.retryable
        assert "b cannot be loaded: ModelLoadError: no such folder" in failure.message
        broken[0] = False
        await there.send("b", id="y")
        assert (await there.client.result("y", model="b")).failure is not None  # not yet
        assert fates(await there.send("a")) == [Fate.ANSWERED]
        now_s[0] = 2.0
        await there.send("b", id="z")
        assert (await there.client.result("z", model="b")).unwrap() == "b 0 by b"


async def test_a_job_that_wants_another_attempt_gets_it_when_its_model_cannot_be_loaded(redis_url: str) -> None:
    def never(config: EngineConfig) -> MarkedEngine:
        raise MemoryError

    async with hosting(redis_url, "a", make=never) as there:
        policy = RetryPolicy(attempts=2, backoff_s=60)
        reply = await there.send("a", id="again", retry=policy)
        assert fates(reply) == [Fate.DELAYED]
        await there.client.cancel("again", model="a")


# -- while others compute -----------------------------------------------------------------------------------------


async def test_a_model_that_computes_is_never_taken_away_and_a_newcomer_waits(redis_url: str) -> None:
    """There is room for one, and a newcomer has its turn before the next batch of who was there."""
    gate, order = threading.Event(), list[str]()

    class Gated(MarkedEngine):
        def run(self, items: Any) -> list[Any]:
            assert gate.wait(30)
            order.append(self._name)
            return super().run(items)

    make_gated = lambda config: Gated(config.options["name"])  # noqa: E731
    async with hosting(redis_url, "old", "new", memory_bytes=MIB, make=make_gated) as there:
        first = asyncio.create_task(there.send("old"))
        await eventually(lambda: there.host.info["loads"] == 1 and there.host.models._seats["old"].running)
        newcomer = asyncio.create_task(there.send("new"))
        await eventually(lambda: there.host.models._seats["old"].leaving)
        later = asyncio.create_task(there.send("old"))
        await eventually(lambda: there.host.models._seats["old"].waiting)
        assert there.host.info["evictions"] == 0
        gate.set()
        for task in (first, newcomer, later):
            assert fates(await task) == [Fate.ANSWERED]
        assert order == ["old", "new", "old"]


async def test_two_models_in_the_room_of_one_take_turns_and_none_is_unloaded_unused(redis_url: str) -> None:
    async with hosting(redis_url, "a", "b", memory_bytes=MIB) as there:
        await asyncio.gather(*[there.send(name) for name in "abababab"])
        info = there.host.info
        assert info["loads"] <= 8
        assert info["evictions"] == info["loads"] - 1


async def test_a_batch_that_is_to_run_alone_has_the_whole_process_to_itself(redis_url: str) -> None:
    """Whoever dies beside it would be blamed for it."""
    gate = threading.Event()
    make_gated = lambda config: MarkedEngine(config.options["name"], gate=gate)  # noqa: E731
    async with hosting(redis_url, "a", "b", make=make_gated) as there:
        running = asyncio.create_task(there.send("a"))
        await eventually(lambda: there.host.info["loads"] == 1)
        assert fates(await there.send("b", alone=True)) == [Fate.RETURNED]
        gate.set()
        await running
        lone = await batch_of(there.services["b"], entries=await there.services["b"].take(again=True), alone=True)
        assert fates(HostReply.from_bytes(await there.host.run(lone))) == [Fate.ANSWERED]


async def test_models_compute_one_after_the_other(redis_url: str) -> None:
    computing, most = [0], [0]

    class Counted(MarkedEngine):
        def run(self, items: Any) -> list[Any]:
            computing[0] += 1
            most[0] = max(most[0], computing[0])
            outputs = super().run(items)
            computing[0] -= 1
            return outputs

    async with hosting(redis_url, *"abcd", memory_bytes=8 * MIB, make=lambda c: Counted(c.options["name"])) as there:
        await asyncio.gather(*[there.send(name) for name in "abcd" * 5])
    assert most == [1]


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = ComputeTurns(), list[int]()

    def take(number: int) -> None:
        with turns.turn():
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    with turns.turn():
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < number:
                pass
    for thread in threads:
        thread.join()
    assert order == list(range(8))


# -- models that generate -----------------------------------------------------------------------------------------


async def test_a_model_that_generates_is_hosted_beside_others(redis_url: str) -> None:
    words = EngineConfig(
        kind="custom", target="support.decoders:FakeDecoder", options={"slots": 4, "step_s": 0.0}, slots=4
    )
    host = ModelHost({"words": words, "a": config_of("a")}, redis_url=redis_url, memory_bytes=1 << 40, make=make_engine)
    async with AsyncClient(redis_url) as client, HandService(redis_url, "words") as service:
        job = Job(model="words", input="mill", params={"max_tokens": 5})
        await client.submit(job)
        batch = await batch_of(service)
        replies = [HostReply.from_bytes(reply) async for reply in host.stream(batch)]
        ended = [number for reply in replies for number in JobOutcomes.from_bytes(reply.message).numbers]
        assert ended == [0]
        answer = (await client.result(job.id, model="words")).unwrap()
        assert answer["choices"][0]["text"] == words_of("mill", 5)
        assert names(replies[-1]) == ["words"]
        await host.close()


async def test_jobs_that_generate_are_told_why_their_model_cannot_be_had(redis_url: str) -> None:
    words = EngineConfig(kind="custom", target="support.decoders:Nothing", slots=4)
    host = ModelHost({"words": words}, redis_url=redis_url, memory_bytes=MIB, make=make_engine)
    async with AsyncClient(redis_url) as client, HandService(redis_url, "words") as service:
        job = Job(model="words", input="mill")
        await client.submit(job)
        batch = await batch_of(service)
        replies = [HostReply.from_bytes(reply) async for reply in host.stream(batch)]
        assert JobOutcomes.from_bytes(replies[-1].message).fates == [Fate.ANSWERED]
        failure = (await client.result(job.id, model="words")).failure
        assert failure is not None
        assert "has no class Nothing" in failure.message
        await host.close()


# -- edges ----------------------------------------------------------------------------------------------------------


async def test_a_batch_of_a_model_that_is_not_hosted_goes_back(redis_url: str) -> None:
    """While a service changes, a router may be ahead of a replica."""
    async with hosting(redis_url, "a") as there, HandService(redis_url, "stranger") as stranger:
        await there.client.submit(Job(model="stranger", input="x"))
        reply = HostReply.from_bytes(await there.host.run(await batch_of(stranger)))
        assert fates(reply) == [Fate.RETURNED]


async def test_shards_are_one_model(redis_url: str) -> None:
    async with hosting(redis_url, "a") as there, HandService(redis_url, "a#1") as shard:
        await there.client.submit(Job(model="a#1", input="a x", id="sharded"))
        reply = HostReply.from_bytes(await there.host.run(await batch_of(shard)))
        assert names(reply) == ["a"]
        assert (await there.client.result("sharded", model="a#1")).unwrap() == "a x by a"


async def test_a_waiting_batch_that_is_called_off_leaves_nothing_behind(redis_url: str) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slowly(config: EngineConfig) -> MarkedEngine:
        loading.set()
        assert go_on.wait(30)
        return make(config)

    async with hosting(redis_url, "a", make=slowly) as there:
        called_off = asyncio.create_task(there.send("a"))
        await eventually(loading.is_set)
        called_off.cancel()
        await asyncio.wait({called_off})
        go_on.set()
        await eventually(lambda: there.host.info["loads"] == 1)
        assert there.host.models._seats["a"].idle


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x93\xc4\x00\x01\xc0", b"\x93\xc4\x00\x01\x91\x91\x01"])
def test_a_reply_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        HostReply.from_bytes(data)


def test_bytes_of_a_model_are_those_of_its_files_until_its_engine_says_more(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * MIB))
    (tmp_path / "config.json").write_text("{}")
    assert expected_bytes(EngineConfig(model=str(tmp_path))) == 3 * MIB
    assert expected_bytes(EngineConfig(kind="decoder", model=str(tmp_path), kv_cache_bytes=MIB)) == 4 * MIB
    assert expected_bytes(EngineConfig(model="not/here")) == LEAST_BYTES

    def info(**details: Any) -> EngineInfo:
        return EngineInfo("v", "t", "cpu", 0.0, details)

    assert loaded_bytes(info(bytes=7 * MIB), expected=3 * MIB, grown=0) == 7 * MIB
    assert loaded_bytes(info(), expected=3 * MIB, grown=9 * MIB) == 3 * MIB
    assert loaded_bytes(info(), expected=LEAST_BYTES, grown=9 * MIB) == 9 * MIB
    assert loaded_bytes(info(), expected=LEAST_BYTES, grown=-5) == LEAST_BYTES
