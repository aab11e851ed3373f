"""Overload is an answer: a full lane says so at once, and says when to come again."""

import pytest

from headrace import AsyncClient, Job, QueueFullError, TenantQueueFullError
from headrace.models.registry import Limits
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.bad_days import GatedEngine
from support.service import PlainService


def at_most(**limits: int) -> RoutingPolicy:
    return RoutingPolicy(limits=Limits(**limits), block_ms=50)


async def test_a_full_lane_refuses(redis_url: str) -> None:
    """What fits is accepted, what does not is refused; the error's receipts tell which is which."""
    engine = GatedEngine()
    async with (
        PlainService(redis_url, "slow", engine, policy=at_most(lane_capacity=3)),
        AsyncClient(redis_url) as client,
    ):
        with pytest.raises(QueueFullError) as caught:
            await client.submit_many([Job(model="slow", input=n) for n in range(5)])
        engine.open()

        assert [receipt.accepted for receipt in caught.value.receipts] == [True, True, True, False, False]
        assert caught.value.retry_after_s > 0
        for receipt in caught.value.receipts[:3]:
            assert (await client.result(receipt, timeout_s=5)).ok


async def test_one_tenant_does_not_fill_the_lane_for_the_others(redis_url: str) -> None:
    """A tenant has a cap of its own on the jobs that are waiting or running."""
    engine = GatedEngine()
    async with (
        PlainService(redis_url, "slow", engine, policy=at_most(tenant_capacity=2)),
        AsyncClient(redis_url) as client,
    ):
        await client.submit_many([Job(model="slow", input=n, tenant="greedy") for n in range(2)])
        with pytest.raises(TenantQueueFullError):
            await client.submit(Job(model="slow", input="one more", tenant="greedy"))
        engine.open()

        assert (await client.run(Job(model="slow", input="hello", tenant="modest"), timeout_s=5)).ok


async def test_patience_waits_for_room(redis_url: str) -> None:
    """`submit_patiently` and `map` wait until there is room, for as long as it takes."""
    engine = GatedEngine(is_open=True)
    async with (
        PlainService(redis_url, "slow", engine, policy=at_most(lane_capacity=5)),
        AsyncClient(redis_url) as client,
    ):
        receipts = await client.submit_patiently([Job(model="slow", input=n) for n in range(20)])

        assert all(receipt.accepted for receipt in receipts)
        for receipt in receipts:
            assert (await client.result(receipt, timeout_s=5)).ok
