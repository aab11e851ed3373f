"""The synchronous client: the same calls without `await`, from any thread."""

import asyncio

from headrace import Client, Job
from support.service import PlainService

# The service of these tests lives in the test's own event loop, so the plain calls are made on another thread.
# In a program of its own they stand as they are in the functions below.


async def test_a_job_is_answered(echo_service: PlainService, redis_url: str) -> None:
    """No event loop in sight."""

    def program() -> str:
        with Client(redis_url) as client:
            result = client.run(Job(model="echo", input="water flows downhill"), timeout_s=5)
            return str(result.unwrap())

    assert await asyncio.to_thread(program) == "water flows downhill"


async def test_map_is_an_ordinary_iterator(echo_service: PlainService, redis_url: str) -> None:
    """A bounded number of jobs is in flight while the loop's body runs."""

    def program() -> list[int]:
        with Client(redis_url) as client:
            return [result.unwrap() for result in client.map(Job(model="echo", input=n) for n in range(200))]

    assert await asyncio.to_thread(program) == list(range(200))
