"""A consumer that is another service: an inbox by name, read from a cursor, trimmed behind it."""

from __future__ import annotations

import asyncio

import pytest

from headrace import AsyncClient, DecodeError, Job, Result
from headrace.keys import keys_of
from headrace.server.connection import execute
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")
INBOX = "orders"


async def answered(client: AsyncClient, service: HandService, *values: object) -> None:
    """Jobs of the inbox `orders`, submitted and answered with their values."""
    await client.submit_many([Job(model=MODEL, input=value, inbox=INBOX) for value in values])
    await service.answer_all()


async def all_there_is(client: AsyncClient, after: str = "0") -> list[Result]:
    return [result async for result in client.results(INBOX, model=MODEL, after=after, idle_s=0.01)]


async def test_everything_in_order_of_its_answer(client: AsyncClient, service: HandService) -> None:
    """Entries come in the order in which they were written."""
    await answered(client, service, *range(5))

    assert [result.unwrap() for result in await all_there_is(client)] == list(range(5))


async def test_going_on_behind_a_cursor(client: AsyncClient, service: HandService) -> None:
    """A consumer that stores the cursor with its work skips nothing and repeats nothing."""
    await answered(client, service, *range(6))
    first_half = (await all_there_is(client))[:3]

    rest = await all_there_is(client, after=first_half[-1].cursor)

    assert [result.unwrap() for result in rest] == [3, 4, 5]


async def test_reading_deletes_nothing(client: AsyncClient, service: HandService) -> None:
    """Entries stay for another reading, until they are trimmed or their time is over."""
    await answered(client, service, "a", "b")

    assert await all_there_is(client) == await all_there_is(client)


async def test_trimming_behind_the_cursor(client: AsyncClient, service: HandService) -> None:
    """`trim` deletes up to and including the cursor, and says how much that was."""
    await answered(client, service, *range(5))
    results = await all_there_is(client)

    assert await client.trim(INBOX, model=MODEL, through=results[2].cursor) == 3
    assert [result.unwrap() for result in await all_there_is(client)] == [3, 4]
    assert await client.trim(INBOX, model=MODEL, through=results[2].cursor) == 0


async def test_only_what_comes_from_now_on(client: AsyncClient, service: HandService) -> None:
    """`after="$"` begins at the end, and from there on misses nothing, however long nothing comes."""
    await answered(client, service, "old")
    results = client.results(INBOX, model=MODEL, after="$")
    news = asyncio.create_task(anext(results))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(news), 1.3)  # longer than one blocking read

    await answered(client, service, "new", "newer")

    assert (await news).unwrap() == "new"
    assert (await anext(results)).unwrap() == "newer"
    await results.aclose()


async def test_nothing_is_missed_between_two_reads_from_the_end(
    client: AsyncClient, service: HandService, redis_url: str
) -> None:
    """What is written while no read is under way at the server is read by the next one, from "$" on as well."""
    results = client.results(INBOX, model=MODEL, after="$")
    first = asyncio.create_task(anext(results))
    await eventually(lambda: blocked_clients(service))
    for n in range(20):
        await service.redis.client_kill_filter(_type="normal", skipme=True)  # the reader is between two reads
        await answered(client, service, n)

    seen = [(await asyncio.wait_for(first, 10)).unwrap()]
    while len(seen) < 20:
        seen.append((await asyncio.wait_for(anext(results), 10)).unwrap())
    await results.aclose()

    assert seen == list(range(20))


async def blocked_clients(service: HandService) -> int:
    return int((await service.redis.info("clients"))["blocked_clients"])


async def test_an_empty_inbox_is_waited_at(client: AsyncClient, service: HandService) -> None:
    """An inbox exists when the first answer comes; one may wait before."""
    results = client.results(INBOX, model=MODEL)
    news = asyncio.create_task(anext(results))
    await answered(client, service, "first")

    assert (await news).unwrap() == "first"
    await results.aclose()


async def test_idle_ends_the_reading(client: AsyncClient) -> None:
    """`idle_s` without news, and the iteration ends by itself."""
    assert [result async for result in client.results("nobody-writes-here", model=MODEL, idle_s=0.01)] == []


async def test_two_inboxes_do_not_mix(client: AsyncClient, service: HandService) -> None:
    """An inbox is of one name and one model."""
    await answered(client, service, "mine")
    await client.submit(Job(model=MODEL, input="theirs", inbox="others"))
    await service.answer_all()

    assert [result.unwrap() for result in await all_there_is(client)] == ["mine"]


async def test_failures_are_consumed_like_answers(client: AsyncClient, service: HandService) -> None:
    """A consumer gets the one terminal entry of each job, whatever it is."""
    await client.submit_many([Job(model=MODEL, input=n, inbox=INBOX) for n in range(2)])
    first, second = await service.take()
    await service.fail(first)
    await service.answer(second)

    assert [result.ok for result in await all_there_is(client)] == [False, True]


async def test_more_entries_than_one_read_takes(client: AsyncClient, service: HandService) -> None:
    """Reading goes on from the last entry of each read."""
    await answered(client, service, *range(1100))

    assert [result.unwrap() for result in await all_there_is(client)] == list(range(1100))


@pytest.mark.leaves_jobs
async def test_an_entry_that_is_none_is_an_error_that_names_it(client: AsyncClient, service: HandService) -> None:
    """A consumer is told rather than made to skip; it may go on behind the entry that the error names."""
    bad = str(await execute(service.redis, "XADD", keys_of(MODEL).inbox(INBOX), "*", "what", "ever"), "ascii")
    await answered(client, service, "good")

    with pytest.raises(DecodeError, match=bad):
        await all_there_is(client)
    assert [result.unwrap() for result in await all_there_is(client, after=bad)] == ["good"]


async def test_a_consumer_that_stops_closes_its_connection(client: AsyncClient, service: HandService) -> None:
    """Leaving the loop and closing the iteration ends the blocking read."""
    await answered(client, service, "a", "b")
    results = client.results(INBOX, model=MODEL)
    async for result in results:
        assert result.unwrap() == "a"
        break
    await results.aclose()

    await client.ping()
