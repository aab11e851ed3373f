"""A job is not started after its deadline, wherever it waited, and is answered when that has passed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from headrace import AsyncClient, Job, Status
from headrace.messages import Batch, LaneEntry
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_workers.engines.base import Prepared
from headrace_workers.replicas.replica import Replica
from support.bad_days import GatedEngine, RecordingEngine
from support.raw import envelope
from support.routing import MODEL, idle, jobs, policy
from support.service import PlainService
from support.waiting import eventually


class LonelyEngine(RecordingEngine):
    """Raises for every batch of several jobs, and takes its time with each one."""

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        if len(items) > 1:
            raise RuntimeError("one at a time")
        time.sleep(0.2)
        return super().run(items)


async def test_a_job_expires_while_those_before_it_run_alone(redis_url: str) -> None:
    engine = LonelyEngine()
    async with AsyncClient(redis_url) as client:
        async with PlainService(redis_url, MODEL):
            pass
        receipts = await client.submit_many([Job(model=MODEL, input=n, priority="high") for n in range(3)])
        late = await client.submit(Job(model=MODEL, input="late", deadline_s=0.5))
        async with PlainService(redis_url, MODEL, engine, consumer="second life"):
            results = await asyncio.gather(*(client.result(receipt, timeout_s=5) for receipt in (*receipts, late)))

    assert [result.status for result in results] == [Status.OK, Status.OK, Status.OK, Status.EXPIRED]
    assert engine.ran == [0, 1, 2]


async def test_a_message_that_lay_on_its_way_does_not_turn_back_the_clock(redis_url: str) -> None:
    """A router that was stopped between forming a batch and sending it says when it formed it, not what time it is."""
    engine = RecordingEngine()
    replica = Replica(MODEL, engine, redis_url=redis_url)
    now_ms = 1_700_000_000_000
    payload = bytes.fromhex("81a5696e70757401")
    late = LaneEntry(1, "1-1", envelope("late", deadline=now_ms + 100), payload)
    await replica.run(Batch(MODEL, now_ms + 5000, []).to_bytes())
    await replica.run(Batch(MODEL, now_ms, [late]).to_bytes())
    await replica.close()
    assert engine.ran == []


async def test_a_job_expires_while_it_waits_in_the_router(redis_url: str) -> None:
    """It is answered when its deadline passes, not when a replica has time to look at it."""
    engine = GatedEngine()
    forming = FormingPolicy(max_jobs=1)
    plain = PlainService(redis_url, MODEL, engine, policy=policy(forming=forming))
    async with plain as service, AsyncClient(redis_url) as client:
        await client.submit_many(jobs(2))
        await eventually(lambda: service.router.counts.dispatched == 2)
        late = await client.run(Job(model=MODEL, input="late", deadline_s=0.1), timeout_s=5)
        assert (await client.audit(MODEL)).expired == 1
        engine.open()
        await eventually(lambda: idle(client))

    assert late.status is Status.EXPIRED
    assert "late" not in engine.ran


async def test_a_job_expires_while_it_waits_at_the_replica(redis_url: str) -> None:
    """It was dispatched in time, and the batch before it took too long."""
    engine = GatedEngine()
    async with PlainService(redis_url, MODEL, engine) as service, AsyncClient(redis_url) as client:
        await client.submit(jobs(1)[0])
        await eventually(lambda: service.router.counts.dispatched == 1)
        receipt = await client.submit(Job(model=MODEL, input="late", deadline_s=0.2))
        receipts = await client.submit_many([Job(model=MODEL, input=n) for n in range(63)])  # fills the second batch
        await eventually(lambda: service.router.counts.dispatched == 65)
        await asyncio.sleep(0.25)
        engine.open()

        assert (await client.result(receipt, timeout_s=5)).status is Status.EXPIRED
        assert all([(await client.result(receipt, timeout_s=5)).ok for receipt in receipts])
    assert "late" not in engine.ran


async def test_a_job_that_is_expired_when_it_is_read_never_runs(redis_url: str) -> None:
    """No router was there until it was too late."""
    engine = RecordingEngine()
    async with PlainService(redis_url, MODEL):
        pass
    async with AsyncClient(redis_url) as client:
        receipts = await client.submit_many(jobs(100, deadline_s=0.05))
        await asyncio.sleep(0.06)
        async with PlainService(redis_url, MODEL, engine, consumer="second life"):
            results = [await client.result(receipt, timeout_s=5) for receipt in receipts]

    assert {result.status for result in results} == {Status.EXPIRED}
    assert engine.ran == []
