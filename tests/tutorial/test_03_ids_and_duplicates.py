"""Ids: a job is known by its id, and no id is run twice."""

from headrace import AsyncClient, Job, SubmitOutcome
from support.service import PlainService


async def test_a_job_has_an_id_of_its_own(echo_service: PlainService, redis_url: str) -> None:
    """Whoever gives none gets a UUIDv7, which sorts by time."""
    async with AsyncClient(redis_url) as client:
        result = await client.run(Job(model="echo", input="x"), timeout_s=5)

    assert len(result.id) == 36


async def test_an_id_may_be_the_producer_s_own(echo_service: PlainService, redis_url: str) -> None:
    """An order number, a file name: whatever the producer can find again after a crash."""
    async with AsyncClient(redis_url) as client:
        await client.submit(Job(model="echo", input="x", id="order-4711"))

        assert (await client.result("order-4711", model="echo", timeout_s=5)).unwrap() == "x"


async def test_submitting_an_id_again_is_safe(echo_service: PlainService, redis_url: str) -> None:
    """The second submission is told that the job is known; the job runs once, and both get its answer."""
    async with AsyncClient(redis_url) as client:
        first = await client.submit(Job(model="echo", input="x", id="order-4711"))
        second = await client.submit(Job(model="echo", input="x", id="order-4711"))

        assert first.outcome is SubmitOutcome.ACCEPTED
        assert second.outcome is SubmitOutcome.DUPLICATE
        assert (await client.result(second, timeout_s=5)).unwrap() == "x"
        assert (await client.audit("echo")).submitted == 1


async def test_another_process_asks_by_the_id(echo_service: PlainService, redis_url: str) -> None:
    """The id and the model are all that is needed to ask for an answer."""
    async with AsyncClient(redis_url) as producer:
        await producer.submit(Job(model="echo", input="for whom it may concern", id="letter"))

    async with AsyncClient(redis_url) as another:
        assert (await another.result("letter", model="echo", timeout_s=5)).unwrap() == "for whom it may concern"
