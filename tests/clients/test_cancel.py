"""Calling jobs off: each gets exactly one terminal entry, and the caller an honest answer."""

from __future__ import annotations

import pytest

from headrace import AsyncClient, CancelOutcome, Client, Job, JobCancelledError, JobState, Status
from headrace.keys import keys_of
from headrace.scripts import GiveBack, RetryOutcome, retry
from headrace.server.connection import execute
from support.by_hand import HandService

MODEL = "by-hand"


def job(job_id: str = "a", **fields: object) -> Job:
    return Job(model=MODEL, input=job_id, id=job_id, **fields)


async def test_a_waiting_job_never_runs(service: HandService, client: AsyncClient) -> None:
    receipt = await client.submit(job())

    assert await client.cancel(receipt) is CancelOutcome.CANCELLED

    assert await service.take() == []
    result = await client.result(receipt)
    assert result.status is Status.CANCELLED
    with pytest.raises(JobCancelledError, match="was cancelled"):
        result.unwrap()
    assert (await client.status(receipt)).state is JobState.CANCELLED
    audit = await client.audit(MODEL)
    assert (audit.cancelled, audit.live, audit.lost, audit.doubled) == (1, 0, 0, 0)
    assert await execute(service.redis, "HLEN", keys_of(MODEL).tenants) == 0


async def test_a_delayed_job_never_runs_again(service: HandService, client: AsyncClient) -> None:
    receipt = await client.submit(job())
    [entry] = await service.take()
    await retry(service.redis, MODEL, [GiveBack(entry.lane, entry.entry_id, entry.text, 60_000)])

    assert await client.cancel(receipt) is CancelOutcome.CANCELLED

    assert (await client.result(receipt)).status is Status.CANCELLED
    audit = await client.audit(MODEL)
    assert (audit.cancelled, audit.live, audit.delayed) == (1, 0, 0)


async def test_a_job_in_somebody_s_hands_is_asked_for(service: HandService, client: AsyncClient) -> None:
    """It may be answered still, and then that is its answer."""
    receipt = await client.submit(job())
    [entry] = await service.take()

    assert [await client.cancel(receipt) for _ in range(2)] == [CancelOutcome.REQUESTED] * 2
    assert (await client.status(receipt)).state is JobState.CANCELLING
    assert await execute(service.redis, "XLEN", keys_of(MODEL).cancels) == 1

    await service.answer(entry)
    assert (await client.result(receipt)).ok
    assert await client.cancel(receipt) is CancelOutcome.ENDED


async def test_a_job_that_is_asked_for_has_no_further_attempt(service: HandService, client: AsyncClient) -> None:
    receipt = await client.submit(job())
    [entry] = await service.take()
    await client.cancel(receipt)

    back = GiveBack(entry.lane, entry.entry_id, entry.text, 0)
    assert await retry(service.redis, MODEL, [back]) == [RetryOutcome.CANCELLING]

    await service.fail(entry, status=Status.CANCELLED)
    assert (await client.result(receipt)).status is Status.CANCELLED


async def test_what_has_ended_and_what_never_was(service: HandService, client: AsyncClient) -> None:
    receipt = await client.submit(job())
    await service.answer_all()

    assert await client.cancel(receipt) is CancelOutcome.ENDED
    assert await client.cancel("never", model=MODEL) is CancelOutcome.UNKNOWN
    assert (await client.result(receipt)).ok


async def test_many_at_once(service: HandService, client: AsyncClient) -> None:
    await client.submit_many([job(str(n), inbox="elsewhere") for n in range(300)])

    outcomes = await client.cancel_many([str(n) for n in range(301)], model=MODEL)

    assert outcomes == [CancelOutcome.CANCELLED] * 300 + [CancelOutcome.UNKNOWN]
    assert (await client.audit(MODEL)).cancelled == 300


async def test_the_synchronous_client(service: HandService, redis_url: str, client: AsyncClient) -> None:
    receipt = await client.submit(job())
    with Client(redis_url) as sync:
        assert sync.cancel(receipt) is CancelOutcome.CANCELLED
        assert sync.cancel_many(["a", "b"], model=MODEL) == [CancelOutcome.ENDED, CancelOutcome.UNKNOWN]
