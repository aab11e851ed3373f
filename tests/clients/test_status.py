"""Where a job is: what its record, its lane and the audit say of it."""

from __future__ import annotations

import time

import pytest

from headrace import AsyncClient, DecodeError, FailureCode, Job, JobState, RedisError, ResultGoneError, Status
from headrace.keys import keys_of
from headrace.models.registry import Limits
from headrace.server.connection import execute
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


async def test_a_job_that_nobody_took_waits(client: AsyncClient, service: HandService) -> None:
    """With what its producer said of it."""
    await client.submit(Job(model=MODEL, input="x", id="job", tenant="mill", priority="low", inbox="box"))

    status = await client.status("job", model=MODEL)

    assert (status.state, status.deliveries, status.finished_ms) == (JobState.WAITING, 0, None)
    assert (status.model, status.id, status.tenant, status.priority, status.inbox) == (
        MODEL,
        "job",
        "mill",
        "low",
        "box",
    )
    assert abs(status.submitted_ms / 1000 - time.time()) < 5


async def test_a_job_that_was_taken_runs(client: AsyncClient, service: HandService) -> None:
    """And how often it was taken is counted by Redis."""
    receipt = await client.submit(Job(model=MODEL, input="x"))
    [entry] = await service.take()
    assert (await client.status(receipt)).deliveries == 1
    lane = keys_of(MODEL).lanes[1]
    await execute(service.redis, "XCLAIM", lane, "g", "hand", 0, entry.entry_id)

    status = await client.status(receipt)

    assert (status.state, status.deliveries) == (JobState.RUNNING, 2)


@pytest.mark.parametrize("ended", [Status.OK, Status.ERROR, Status.EXPIRED, Status.CANCELLED, Status.DEAD])
async def test_a_job_that_has_ended_says_how_and_when(client: AsyncClient, service: HandService, ended: Status) -> None:
    """And where its answer lies."""
    receipt = await client.submit(Job(model=MODEL, input="x"))
    taken = await service.take()
    if ended is Status.OK:
        await service.answer(*taken)
    else:
        await service.fail(*taken, status=ended, code=FailureCode.ENGINE_FAILED)

    status = await client.status(receipt)

    assert status.state == JobState(ended)
    assert status.finished_ms is not None
    assert status.finished_ms >= status.submitted_ms
    assert [status.entry_id] == await service.inbox_entries(client.inbox)
    audit = await client.audit(MODEL)
    assert getattr(audit, ended) == audit.finished == 1


async def test_ended_jobs_are_forgotten_when_their_retention_is_over(client: AsyncClient, service: HandService) -> None:
    """Records and answers alike; the counters remember that they were."""
    await service.set_limits(Limits(retention_s=1))
    receipt = await client.submit(Job(model=MODEL, input="x"))
    await service.answer(*await service.take())

    await eventually(lambda: forgotten(service, receipt.id))
    with pytest.raises(ResultGoneError):
        await client.status(receipt)
    await eventually(lambda: nothing_in(service, client.inbox))
    assert (await client.audit(MODEL)).ok == 1


async def forgotten(service: HandService, job_id: str) -> bool:
    return not await service.redis.exists(keys_of(MODEL).record(job_id))


async def nothing_in(service: HandService, inbox: str) -> bool:
    return not await service.inbox_entries(inbox)


async def test_a_record_that_is_none_is_a_named_error(client: AsyncClient, service: HandService) -> None:
    """Somebody else's key under our name."""
    await service.redis.set(keys_of(MODEL).record("foreign"), "what is this", px=60_000)

    with pytest.raises(DecodeError, match="not a record"):
        await client.status("foreign", model=MODEL)


async def test_a_key_of_another_type_is_a_redis_error(client: AsyncClient, service: HandService) -> None:
    """WRONGTYPE is of our tree, too."""
    await service.redis.rpush(keys_of(MODEL).record("foreign"), "a list")
    await service.redis.pexpire(keys_of(MODEL).record("foreign"), 60_000)

    with pytest.raises(RedisError, match="WRONGTYPE"):
        await client.status("foreign", model=MODEL)


async def test_the_audit_of_a_model_that_nobody_registered(client: AsyncClient) -> None:
    """Nothing was submitted, nothing is missing."""
    audit = await client.audit("nobody")

    assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (0, 0, 0, 0, 0)


async def test_the_audit_shows_a_lost_job(client: AsyncClient, service: HandService) -> None:
    """Sabotage: a job that is deleted behind the service's back."""
    await client.submit_many([Job(model=MODEL, input=n) for n in range(3)])
    [first, *_] = await service.take()
    await execute(service.redis, "XDEL", keys_of(MODEL).lanes[1], first.entry_id)
    await execute(service.redis, "XACK", keys_of(MODEL).lanes[1], "g", first.entry_id)
    await service.redis.pexpire(keys_of(MODEL).record(first.envelope.job_id), 60_000)

    assert (await client.audit(MODEL)).lost == 1
