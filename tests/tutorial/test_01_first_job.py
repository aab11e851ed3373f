"""The first job: hand it over, wait, look at the answer."""

from headrace import AsyncClient, Job
from support.service import PlainService


async def test_a_job_is_answered(echo_service: PlainService, redis_url: str) -> None:
    """`run` hands a job over and waits for its one answer."""
    async with AsyncClient(redis_url) as client:
        result = await client.run(Job(model="echo", input="water flows downhill"), timeout_s=5)

    assert result.ok
    assert result.unwrap() == "water flows downhill"
