"""Many jobs: hand them over together, or let `map` keep a number of them in flight."""

from headrace import AsyncClient, Job
from support.service import PlainService


async def test_many_jobs_are_handed_over_with_one_call(echo_service: PlainService, redis_url: str) -> None:
    """`submit_many` returns a receipt for each job, in order; each receipt leads to its answer."""
    async with AsyncClient(redis_url) as client:
        receipts = await client.submit_many([Job(model="echo", input=n) for n in range(100)])

        outputs = [(await client.result(receipt, timeout_s=5)).unwrap() for receipt in receipts]

    assert outputs == list(range(100))


async def test_map_gives_results_in_the_order_of_the_jobs(echo_service: PlainService, redis_url: str) -> None:
    """`map` takes jobs from any iterable, as room allows, and yields their results as they become due."""
    words = (Job(model="echo", input=word) for word in ("race", "leat", "flume", "sluice"))

    async with AsyncClient(redis_url) as client:
        outputs = [result.unwrap() async for result in client.map(words, in_flight=2)]

    assert outputs == ["race", "leat", "flume", "sluice"]


async def test_map_gives_results_as_they_come(echo_service: PlainService, redis_url: str) -> None:
    """With `ordered=False` nothing waits for a slower job before it; a result says which job it is of."""
    jobs = [Job(model="echo", input=n, id=f"line-{n}") for n in range(50)]

    async with AsyncClient(redis_url) as client:
        outputs = {result.id: result.unwrap() async for result in client.map(jobs, ordered=False)}

    assert outputs == {f"line-{n}": n for n in range(50)}
