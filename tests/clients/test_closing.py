"""Closing a client: what ends, who is told, and that nothing stays open."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from headrace import AsyncClient, Job
from headrace.keys import keys_of
from headrace.models.registry import Limits
from support.by_hand import HandService
from support.leaks import holdings
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


async def test_a_client_that_did_nothing(redis_url: str) -> None:
    """Opening is free: no connection, no task."""
    before = holdings()
    async with AsyncClient(redis_url):
        assert holdings() == before


async def test_jobs_go_on_when_their_client_closes(redis_url: str, service: HandService) -> None:
    """Closing withdraws nothing: another client asks for the answer by its id."""
    async with AsyncClient(redis_url) as client:
        await client.submit_many([Job(model=MODEL, input=n, id=f"job-{n}") for n in range(10)])
    await service.answer(*await service.take(), output="later")

    async with AsyncClient(redis_url) as other:
        assert (await other.result("job-7", model=MODEL, timeout_s=5)).unwrap() == "later"


async def test_whoever_waits_is_told_that_the_client_closed(redis_url: str, service: HandService) -> None:
    """Nobody waits for ever on a client that reads no more."""
    client = AsyncClient(redis_url)
    own = await client.submit(Job(model=MODEL, input="x"))
    foreign = await client.submit(Job(model=MODEL, input="x", inbox="elsewhere"))

    async def consume() -> None:
        async for _ in client.map([Job(model=MODEL, input=n) for n in range(3)]):
            pass

    waiting = [
        asyncio.create_task(client.result(own)),
        asyncio.create_task(client.result(foreign)),
        asyncio.create_task(consume()),
    ]
    await eventually(lambda: submitted(service, 5))
    await client.aclose()

    done, pending = await asyncio.wait(waiting, timeout=5)
    assert not pending
    for task in done:
        with pytest.raises(RuntimeError, match="the client is closed; the job goes on"):
            await task


async def submitted(service: HandService, count: int) -> bool:
    return int(await service.redis.xlen(keys_of(MODEL).lanes[1])) >= count


async def test_closing_does_not_wait_for_answers_that_are_looked_up(redis_url: str, service: HandService) -> None:
    """A map may have duplicates of other clients' jobs, whose records it asks now and then."""
    async with AsyncClient(redis_url) as other, AsyncClient(redis_url) as client:
        await other.submit(Job(model=MODEL, input="x", id="theirs"))
        results = client.map([Job(model=MODEL, input="x", id="theirs")])
        first = asyncio.create_task(anext(results))
        await eventually(lambda: bool(client.own_inbox._tasks))
        async with asyncio.timeout(3):
            await client.aclose()

        with pytest.raises(RuntimeError, match="closed"):
            await first


async def test_a_closed_client_starts_no_reader_again(redis_url: str, service: HandService) -> None:
    """Using it after it was closed is a mistake, and said to be one."""
    client = AsyncClient(redis_url)
    await client.aclose()

    with pytest.raises(RuntimeError, match="closed"):
        await client.submit(Job(model=MODEL, input="x"))
    with pytest.raises(RuntimeError, match="closed"):
        await client.result("job", model=MODEL)


async def test_closing_twice(redis_url: str, service: HandService) -> None:
    """The second time there is nothing to do."""
    client = AsyncClient(redis_url)
    await client.submit(Job(model=MODEL, input="x"))
    await client.aclose()
    await client.aclose()


async def test_closing_while_submitting(redis_url: str, service: HandService) -> None:
    """A submission that waits for room ends with the client's block, by cancellation or by an error."""
    await service.set_limits(Limits(lane_capacity=1))
    async with AsyncClient(redis_url) as client:
        patient = asyncio.create_task(client.submit_patiently([Job(model=MODEL, input=n) for n in range(3)]))
        await eventually(lambda: submitted(service, 1))

    done, _ = await asyncio.wait({patient}, timeout=5)
    assert done
    with pytest.raises(RuntimeError, match="closed"):
        await patient


async def test_nothing_stays_open_after_everything_was_used(redis_url: str, service: HandService) -> None:
    """Submissions, maps, consumers, time-outs and cancellations: no task, thread, socket or file is left."""
    before = holdings()
    service.keep_answering()
    async with AsyncClient(redis_url) as client:
        await asyncio.gather(*(client.run(Job(model=MODEL, input=n), timeout_s=5) for n in range(50)))
        async for _ in client.map([Job(model=MODEL, input=n) for n in range(100)], in_flight=10):
            pass
        half_way = client.map([Job(model=MODEL, input=n) for n in range(100)], in_flight=10, ordered=False)
        await anext(half_way)
        await half_way.aclose()
        await client.submit(Job(model=MODEL, input="x", inbox="orders"))
        async for _ in client.results("orders", model=MODEL):
            break  # the iteration is left to the garbage collector
        cancelled = asyncio.create_task(client.result("job", model=MODEL))
        cancelled.cancel()
        await asyncio.wait({cancelled})
    before["tasks"] |= {service._answering.get_name()} if service._answering else set()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    await eventually(lambda: holdings()["tasks"] <= before["tasks"])
    left = {kind: names - before[kind] for kind, names in holdings().items()}
    assert left == {"tasks": set(), "threads": set(), "files": set()}
    assert [str(warning.message) for warning in caught] == []


async def test_memory_of_a_long_map_does_not_grow(client: AsyncClient, service: HandService) -> None:
    """Whatever was yielded leaves nothing behind in the client."""
    service.keep_answering()
    async for _ in client.map((Job(model=MODEL, input=n) for n in range(3000)), in_flight=256, ordered=False):
        pass

    demultiplexer = client.own_inbox.demultiplexer(MODEL)
    assert demultiplexer.pending == 0
    assert not demultiplexer._arrived
    await eventually(lambda: no_entries(service, client.inbox))


async def no_entries(service: HandService, inbox: str) -> bool:
    return not await service.inbox_entries(inbox)
