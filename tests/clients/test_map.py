"""`map`: many jobs through a window, in order or as they come, and every way in which it can end early."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator

import pytest

from headrace import AsyncClient, InvalidJobError, Job, JobFailedError, UnknownModelError
from headrace.messages import LaneEntry, unpack_payload
from headrace.models.registry import Limits
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=n) for n in range(count)]


async def answer_in_random_order(service: HandService) -> None:
    """Answers every job with its input, the last that came often first, for ever."""
    held: deque[LaneEntry] = deque()
    while True:
        held += await service.take()
        random.shuffle(held)
        for entry in [held.pop() for _ in range((len(held) + 1) // 2)]:
            await service.answer(entry, output=unpack_payload(entry.payload)[0])
        await asyncio.sleep(0.001)


@pytest.fixture
async def shuffling(service: HandService) -> HandService:
    """The service by hand, answering in no particular order."""
    service._answering = asyncio.create_task(answer_in_random_order(service))
    return service


# -- order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 2, 3, 64, 1024])
async def test_results_come_in_the_order_of_the_jobs(
    client: AsyncClient, shuffling: HandService, in_flight: int
) -> None:
    """However the answers arrive, and however wide the window is."""
    count = min(300, 20 * in_flight)

    outputs = [result.unwrap() async for result in client.map(jobs(count), in_flight=in_flight)]

    assert outputs == list(range(count))


@pytest.mark.parametrize("in_flight", [1, 3, 100])
async def test_as_completed_gives_each_result_once(client: AsyncClient, shuffling: HandService, in_flight: int) -> None:
    """`ordered=False` yields what is there; nothing is left out, nothing comes twice."""
    count = min(300, 20 * in_flight)

    outputs = [result.unwrap() async for result in client.map(jobs(count), in_flight=in_flight, ordered=False)]

    assert sorted(outputs) == list(range(count))


async def test_as_completed_does_not_wait_for_the_first(client: AsyncClient, service: HandService) -> None:
    """A slow first job keeps nobody waiting."""
    results = client.map(jobs(3), ordered=False)
    first = asyncio.create_task(anext(results))
    taken = await take(service, 3)
    await service.answer(taken[1], output="second")

    assert (await first).unwrap() == "second"

    await service.answer(taken[0], taken[2], output="rest")
    assert [result.unwrap() async for result in results] == ["rest", "rest"]


async def take(service: HandService, count: int) -> list[LaneEntry]:
    """Takes exactly that many jobs, waiting for them."""
    taken: list[LaneEntry] = []

    async def enough() -> bool:
        taken.extend(await service.take())
        return len(taken) >= count

    await eventually(enough)
    assert len(taken) == count
    return taken


async def test_failed_jobs_are_results_like_others(client: AsyncClient, service: HandService) -> None:
    """A job's own error does not end the map; `unwrap` is the caller's."""
    results = client.map(jobs(3))
    first = asyncio.create_task(anext(results))
    taken = await take(service, 3)
    await service.answer(taken[0])
    await service.fail(taken[1])
    await service.answer(taken[2])

    statuses = [(await first).ok] + [result.ok async for result in results]

    assert statuses == [True, False, True]


async def test_nothing_to_do(client: AsyncClient) -> None:
    """An empty iterable gives an empty result."""
    assert [result async for result in client.map([])] == []


# -- the window ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("in_flight", [1, 5, 200])
async def test_never_more_than_in_flight_outstanding(
    client: AsyncClient, service: HandService, in_flight: int, ordered: bool
) -> None:
    """What was taken from the iterable and not yet yielded is never more than the window."""
    taken_from = yielded = worst = 0

    def source() -> Iterator[Job]:
        nonlocal taken_from, worst
        for one in jobs(10 * in_flight if in_flight < 100 else 450):
            taken_from += 1
            worst = max(worst, taken_from - yielded)
            yield one

    service.keep_answering()
    async for result in client.map(source(), in_flight=in_flight, ordered=ordered):
        assert result.ok
        yielded += 1

    assert worst <= in_flight
    assert yielded == taken_from


async def test_the_window_is_filled(client: AsyncClient, service: HandService) -> None:
    """As many jobs are out at once as whole calls fit the window, before any is answered."""
    results = client.map(jobs(300), in_flight=256)
    first = asyncio.create_task(anext(results))
    taken = await take(service, 256)

    await service.answer(*taken)
    service.keep_answering()

    assert (await first).ok
    assert len([result async for result in results]) == 299


async def test_an_endless_iterable_is_taken_from_as_room_allows(client: AsyncClient, service: HandService) -> None:
    """Results come while jobs are still being made."""

    def endless() -> Iterator[Job]:
        n = 0
        while True:
            yield Job(model=MODEL, input=n)
            n += 1

    service.keep_answering()
    results = client.map(endless(), in_flight=16)

    assert [(await anext(results)).unwrap() for _ in range(100)] == list(range(100))
    await results.aclose()


async def test_a_window_of_nothing_is_refused(client: AsyncClient) -> None:
    """`in_flight` below 1 could never hand anything over."""
    with pytest.raises(ValueError, match="in_flight must be at least 1"):
        await anext(client.map(jobs(1), in_flight=0))


async def test_full_lanes_are_waited_out(client: AsyncClient, shuffling: HandService) -> None:
    """A lane shorter than the window makes the map slower, not wrong."""
    await shuffling.set_limits(Limits(lane_capacity=10))

    outputs = [result.unwrap() async for result in client.map(jobs(60), in_flight=50)]

    assert outputs == list(range(60))


# -- repeated ids, other inboxes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_the_same_id_twice_gives_its_answer_twice(
    client: AsyncClient, service: HandService, ordered: bool
) -> None:
    """One job ran; each of the two who asked for it is answered."""
    service.keep_answering()
    twice = [Job(model=MODEL, input="x", id=f"job-{n // 2}") for n in range(40)]

    ids = [result.id async for result in client.map(twice, ordered=ordered)]

    assert sorted(ids) == sorted(one.id for one in twice)
    assert (await client.audit(MODEL)).submitted == 20


async def test_ids_that_were_answered_before_are_not_run_again(
    client: AsyncClient, service: HandService, redis_url: str
) -> None:
    """A resumed batch: what another client had done is read from where it lies."""
    async with AsyncClient(redis_url) as former:
        receipts = await former.submit_many([Job(model=MODEL, input=n, id=f"line-{n}") for n in range(10)])
        await service.answer(*await service.take(), output="by the former run")
        assert len(receipts) == 10
    service.keep_answering()

    results = [
        result.unwrap() async for result in client.map([Job(model=MODEL, input=n, id=f"line-{n}") for n in range(20)])
    ]

    assert results == ["by the former run"] * 10 + list(range(10, 20))


async def test_jobs_of_a_foreign_inbox_are_followed_too(client: AsyncClient, service: HandService) -> None:
    """They are asked for by their record, and left in that inbox."""
    service.keep_answering()
    named = [Job(model=MODEL, input=n, inbox="elsewhere") for n in range(5)]

    assert [result.unwrap() async for result in client.map(named)] == list(range(5))
    assert len(await service.inbox_entries("elsewhere")) == 5


# -- ends before the end --------------------------------------------------------------------------------------------


async def test_an_iterable_that_raises_ends_the_map_with_its_error(client: AsyncClient, service: HandService) -> None:
    """The error is the caller's own, and the client goes on working."""

    def breaking() -> Iterator[Job]:
        yield from jobs(5)
        raise LookupError("the file ended in the middle")

    service.keep_answering()
    with pytest.raises(LookupError, match="in the middle"):
        async for _ in client.map(breaking(), in_flight=2):
            pass

    assert (await client.run(Job(model=MODEL, input="still here"), timeout_s=5)).unwrap() == "still here"


async def test_an_invalid_job_ends_the_map(client: AsyncClient, service: HandService) -> None:
    """A job that cannot be sent is the producer's to fix; what was handed over goes on."""
    service.keep_answering()
    with pytest.raises(InvalidJobError):
        async for _ in client.map([*jobs(1), Job(model=MODEL, input="x" * (1 << 20))], in_flight=1):
            pass

    assert (await client.audit(MODEL)).submitted == 1


async def test_an_unknown_model_ends_the_map(client: AsyncClient) -> None:
    """Nobody will ever answer it."""
    with pytest.raises(UnknownModelError):
        async for _ in client.map([Job(model="nobody", input="x")]):
            pass


async def test_a_map_that_is_left_half_way(client: AsyncClient, service: HandService) -> None:
    """The jobs that were handed over go on, and their answers can still be had by their ids."""
    service.keep_answering()
    wanted = jobs(30)
    results = client.map(wanted, in_flight=8)
    seen = [(await anext(results)).id for _ in range(3)]
    await results.aclose()

    assert seen == [one.id for one in wanted[:3]]
    audit = await client.audit(MODEL)
    assert 3 <= audit.submitted <= 3 + 8
    assert (await client.result(wanted[audit.submitted - 1].id, model=MODEL, timeout_s=5)).ok


async def test_what_was_not_yielded_is_not_consumed(client: AsyncClient, service: HandService) -> None:
    """Leaving a map half-way deletes no answer that the caller may not have seen."""
    wanted = jobs(4)
    results = client.map(wanted)
    first = asyncio.create_task(anext(results))
    await service.answer(*await take(service, 4), output="there")
    await first
    await results.aclose()
    await client.aclose()

    assert len(await service.inbox_entries(client.inbox)) >= 3


async def test_two_maps_at_once(client: AsyncClient, shuffling: HandService) -> None:
    """Windows are independent of each other."""

    async def outputs(ordered: bool) -> list[int]:
        return [result.unwrap() async for result in client.map(jobs(100), in_flight=10, ordered=ordered)]

    ordered, unordered = await asyncio.gather(outputs(True), outputs(False))

    assert ordered == sorted(unordered) == list(range(100))


async def test_a_cancelled_map(client: AsyncClient, service: HandService) -> None:
    """Cancelling the consumer ends the map at once."""

    async def consume() -> None:
        async for _ in client.map(jobs(10)):
            pass

    consuming = asyncio.create_task(consume())
    await take(service, 10)
    consuming.cancel()

    with pytest.raises(asyncio.CancelledError):
        await consuming


async def test_unwrap_raises_for_the_job_at_fault_only(client: AsyncClient, service: HandService) -> None:
    """An idiom: collect the good ones, look at the others."""
    results = client.map(jobs(4))
    first = asyncio.create_task(anext(results))
    taken = await take(service, 4)
    await service.fail(taken[2])
    await service.answer(taken[0], taken[1], taken[3], output="good")

    good, bad = [(await first).unwrap()], []
    async for result in results:
        try:
            good.append(result.unwrap())
        except JobFailedError as error:
            bad.append(error.job_id)

    assert good == ["good"] * 3
    assert bad == [taken[2].envelope.job_id]
