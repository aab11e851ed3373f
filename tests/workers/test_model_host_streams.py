"""A host of models that generate: signs of life, turns that are given back, and what is said of what never ran."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from headrace import AsyncClient, Job
from headrace.errors import ModelLoadError
from headrace.messages import Fate, JobOutcomes
from headrace.messages.host import HostReply
from headrace_workers.engines.factory import EngineConfig, make_engine
from headrace_workers.hosting.model_host import ModelHost
from support.by_hand import HandService
from support.hosting import batch_of, config_of
from support.waiting import eventually

WORDS = EngineConfig(kind="custom", target="support.decoders:FakeDecoder", options={"slots": 4, "step_s": 0.0}, slots=4)


@asynccontextmanager
async def hosting(
    url: str, name: str = "words", *, hosted: str = "words", make: Callable[[EngineConfig], Any] = make_engine
) -> AsyncIterator[tuple[ModelHost, AsyncClient, HandService]]:
    """A host, and the lanes of a model that it may know."""
    host = ModelHost({hosted: WORDS}, redis_url=url, memory_bytes=1 << 40, make=make)
    async with AsyncClient(url) as client, HandService(url, name) as service:
        yield host, client, service
        await host.close()


async def streamed(host: ModelHost, batch: bytes) -> list[JobOutcomes]:
    return [JobOutcomes.from_bytes(HostReply.from_bytes(reply).message) async for reply in host.stream(batch)]


def jobs(count: int = 1, model: str = "words") -> list[Job]:
    return [Job(model=model, input="mill", params={"max_tokens": 3}) for _ in range(count)]


@pytest.mark.parametrize("name", ["words", "words#1"])
async def test_who_streamed_lets_others_have_the_process_to_themselves_afterwards(redis_url: str, name: str) -> None:
    """A shard's jobs are its model's."""
    async with hosting(redis_url, name) as (host, client, service):
        for alone in (False, True, False):
            await client.submit_many(jobs(2, name))
            said = await streamed(host, await batch_of(service, alone=alone))
            assert sorted(number for outcomes in said for number in outcomes.numbers) == [0, 1]
            assert {fate for outcomes in said for fate in outcomes.fates} == {Fate.ANSWERED}


async def test_a_model_that_cannot_be_had_gives_its_turn_back_too(redis_url: str) -> None:
    def never(config: EngineConfig) -> Any:
        raise ModelLoadError("no such folder")

    async with hosting(redis_url, make=never) as (host, client, service):
        await client.submit_many(jobs(2))
        [outcomes] = await streamed(host, await batch_of(service))
        assert (outcomes.numbers, outcomes.fates) == ([0, 1], [Fate.ANSWERED] * 2)
        assert not outcomes.computed
        assert host._turns.enter(time.monotonic(), alone=True)


async def test_jobs_of_a_model_that_is_not_hosted_go_back_one_and_all(redis_url: str) -> None:
    async with hosting(redis_url, "stranger") as (host, client, service):
        await client.submit_many(jobs(3, "stranger"))
        [outcomes] = await streamed(host, await batch_of(service))
        assert (outcomes.numbers, outcomes.fates) == ([0, 1, 2], [Fate.RETURNED] * 3)


class Loading:
    """Makes engines, once it may."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def make(self, config: EngineConfig) -> Any:
        assert self.go_on.wait(30)
        return make_engine(config)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    """Of a host that says often that it lives."""
    monkeypatch.setattr("headrace_workers.hosting.model_host.LIFE_S", 0.01)
    return Loading()


async def test_while_a_model_is_loaded_its_router_hears_that_somebody_lives(redis_url: str, loading: Loading) -> None:
    async with hosting(redis_url, make=loading.make) as (host, client, service):
        await client.submit_many(jobs())
        async with aclosing(host.stream(await batch_of(service))) as replies:
            for _ in range(3):
                reply = HostReply.from_bytes(await anext(replies))
                assert (JobOutcomes.from_bytes(reply.message).numbers, reply.loaded) == ([], [])
            loading.go_on.set()
            rest = [JobOutcomes.from_bytes(HostReply.from_bytes(reply).message) async for reply in replies]
        assert [number for outcomes in rest for number in outcomes.numbers] == [0]


async def test_a_call_that_is_hung_up_while_its_model_is_loaded_leaves_nothing_behind(
    redis_url: str, loading: Loading
) -> None:
    async with hosting(redis_url, make=loading.make) as (host, client, service):
        await client.submit_many(jobs())
        async with aclosing(host.stream(await batch_of(service))) as replies:
            await anext(replies)
        loading.go_on.set()
        await eventually(lambda: host.models.counts.loads == 1)
        assert host.models._seats["words"].idle
        assert host._turns.enter(time.monotonic(), alone=True)


async def test_a_reply_says_what_memory_there_is_and_for_how_long_each_model_ran(redis_url: str) -> None:
    host = ModelHost({"a": config_of("a")}, redis_url=redis_url, memory_bytes=3 << 20, make=make_engine)
    async with AsyncClient(redis_url) as client, HandService(redis_url, "a") as service:
        await client.submit(Job(model="a", input="a x"))
        reply = HostReply.from_bytes(await host.run(await batch_of(service)))
        [model] = reply.loaded
        assert reply.memory_bytes == 3 << 20
        assert model.ran_s > 0
        await host.close()


async def test_jobs_of_a_shard_are_told_in_their_shard_why_there_is_no_answer(redis_url: str) -> None:
    def never(config: EngineConfig) -> Any:
        raise ModelLoadError("no such folder")

    host = ModelHost({"a": config_of("a")}, redis_url=redis_url, memory_bytes=1 << 20, make=never)
    async with AsyncClient(redis_url) as client, HandService(redis_url, "a#1") as shard:
        receipt = await client.submit(Job(model="a#1", input="a x"))
        await host.run(await batch_of(shard))
        failure = (await client.result(receipt, timeout_s=10)).failure
        assert failure is not None
        assert "no such folder" in failure.message
        await host.close()
