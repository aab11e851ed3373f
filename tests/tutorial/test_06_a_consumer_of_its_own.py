"""A consumer that is another service: jobs name an inbox, and whoever knows its name reads the answers there."""

from headrace import AsyncClient, Job
from support.service import PlainService


async def submit_invoices(url: str, *numbers: int) -> None:
    """The producer: it hands jobs over and does not wait for anything."""
    async with AsyncClient(url) as producer:
        await producer.submit_many([Job(model="echo", input=n, inbox="invoices") for n in numbers])


async def test_answers_go_to_the_inbox_that_a_job_names(echo_service: PlainService, redis_url: str) -> None:
    """The consumer needs the inbox's name and the model's, and nothing of the producer."""
    await submit_invoices(redis_url, 1, 2, 3)

    async with AsyncClient(redis_url) as consumer:
        outputs = [result.unwrap() async for result in consumer.results("invoices", model="echo", idle_s=0.3)]

    assert outputs == [1, 2, 3]


async def test_a_consumer_goes_on_from_its_cursor(echo_service: PlainService, redis_url: str) -> None:
    """Store `result.cursor` together with what you did of the result: after a crash nothing is skipped or repeated."""
    await submit_invoices(redis_url, 1, 2, 3)
    done: list[int] = []
    cursor = "0"

    async with AsyncClient(redis_url) as consumer:
        async for result in consumer.results("invoices", model="echo", after=cursor):
            done.append(result.unwrap())
            cursor = result.cursor
            break  # the crash
    async with AsyncClient(redis_url) as consumer:
        async for result in consumer.results("invoices", model="echo", after=cursor, idle_s=0.3):
            done.append(result.unwrap())

    assert done == [1, 2, 3]


async def test_what_is_done_can_be_trimmed(echo_service: PlainService, redis_url: str) -> None:
    """Entries stay for as long as the service keeps answers; a consumer may delete them earlier."""
    await submit_invoices(redis_url, 1, 2, 3)

    async with AsyncClient(redis_url) as consumer:
        results = [result async for result in consumer.results("invoices", model="echo", idle_s=0.3)]
        await consumer.trim("invoices", model="echo", through=results[1].cursor)
        left = [result.unwrap() async for result in consumer.results("invoices", model="echo", idle_s=0.05)]

    assert left == [3]
