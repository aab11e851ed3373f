"""Priorities and deadlines: what goes first, and what need not go at all any more."""

import pytest

from headrace import AsyncClient, Job, JobExpiredError, Status
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.bad_days import GatedEngine
from support.service import PlainService
from support.waiting import eventually


def one_job_a_batch() -> RoutingPolicy:
    """Shows the order of single jobs: one runs, one is prepared at the replica, the others wait in the router."""
    return RoutingPolicy(forming=FormingPolicy(max_jobs=1), block_ms=50)


async def router_has_read(service: PlainService, jobs: int) -> None:
    await eventually(lambda: service.router.counts.read == jobs)


async def test_a_high_priority_goes_before_what_waits(redis_url: str) -> None:
    """While the one replica is busy, later but more urgent jobs pass the others."""
    engine = GatedEngine()
    async with (
        PlainService(redis_url, "slow", engine, policy=one_job_a_batch()) as service,
        AsyncClient(redis_url) as client,
    ):
        await client.submit(Job(model="slow", input="busy", id="busy"))
        await router_has_read(service, 1)
        await client.submit(Job(model="slow", input="prepared", id="prepared"))
        await router_has_read(service, 2)
        await client.submit(Job(model="slow", input="low", id="low", priority="low"))
        await router_has_read(service, 3)
        await client.submit(Job(model="slow", input="high", id="high", priority="high"))
        await router_has_read(service, 4)
        engine.open()
        for name in ("busy", "prepared", "low", "high"):
            await client.result(name, model="slow", timeout_s=5)

    assert engine.ran == ["busy", "prepared", "high", "low"]


async def test_a_job_that_is_too_late_is_not_run(redis_url: str) -> None:
    """Its answer is of no use any more: it expires instead, and its producer is told."""
    engine = GatedEngine()
    plain = PlainService(redis_url, "slow", engine, policy=one_job_a_batch())
    async with plain as service, AsyncClient(redis_url) as client:
        await client.submit_many([Job(model="slow", input=name, id=name) for name in ("busy", "prepared")])
        await eventually(lambda: service.router.counts.dispatched == 2)
        result = await client.run(Job(model="slow", input="late", deadline_s=0.1), timeout_s=5)
        engine.open()
        await client.result("prepared", model="slow", timeout_s=5)
        await client.result("busy", model="slow", timeout_s=5)

    assert result.status is Status.EXPIRED
    assert "late" not in engine.ran
    with pytest.raises(JobExpiredError):
        result.unwrap()
