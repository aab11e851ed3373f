"""Where a job is, and whether all of them are accounted for."""

import pytest

from headrace import AsyncClient, Job, JobState, ResultGoneError
from support.bad_days import GatedEngine
from support.service import PlainService
from support.waiting import eventually


async def test_a_job_waits_runs_and_ends(redis_url: str) -> None:
    """`status` tells which, for every id that is known."""
    engine = GatedEngine()
    async with PlainService(redis_url, "slow", engine) as service, AsyncClient(redis_url) as client:
        receipt = await client.submit(Job(model="slow", input="x", tenant="mill"))
        await eventually(lambda: service.router.counts.dispatched == 1)
        running = await client.status(receipt)
        engine.open()
        await client.result(receipt, timeout_s=5)
        ended = await client.status(receipt)

    assert running.state is JobState.RUNNING
    assert running.finished_ms is None
    assert ended.state is JobState.OK
    assert ended.finished_ms is not None
    assert (ended.tenant, ended.priority, ended.inbox) == ("mill", "normal", receipt.inbox)


async def test_an_id_that_nobody_knows(echo_service: PlainService, redis_url: str) -> None:
    """Never submitted, or ended so long ago that its record was forgotten."""
    async with AsyncClient(redis_url) as client:
        with pytest.raises(ResultGoneError):
            await client.status("order-4711", model="echo")


async def test_every_job_is_accounted_for(redis_url: str) -> None:
    """At every moment: submitted = ended + live. Lost and doubled are 0, whatever happens."""
    engine = GatedEngine()
    async with PlainService(redis_url, "slow", engine), AsyncClient(redis_url) as client:
        receipts = await client.submit_many([Job(model="slow", input=n) for n in range(5)])
        before = await client.audit("slow")
        engine.open()
        for receipt in receipts:
            await client.result(receipt, timeout_s=5)
        after = await client.audit("slow")

    assert (before.submitted, before.finished, before.live) == (5, 0, 5)
    assert (after.submitted, after.ok, after.live) == (5, 5, 0)
    assert (after.lost, after.doubled) == (0, 0)


async def test_the_models_there_are(echo_service: PlainService, redis_url: str) -> None:
    """What services have registered in this Redis."""
    async with AsyncClient(redis_url) as client:
        assert await client.models() == ["echo"]
