"""Jobs that kill or hang the processes they run in, and routers that die: on real Serve, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from headrace import AsyncClient, FailureCode, Job, Status
from headrace_cluster.local import LocalService
from support.waiting import eventually

pytestmark = pytest.mark.ray


def fragile(*wishes: str) -> list[Job]:
    return [Job(model="fragile", input=wish) for wish in wishes]


@pytest.mark.slow
async def test_a_job_that_kills_replicas_is_set_aside(client: AsyncClient) -> None:
    """At most log2 of its batch plus two processes; all the others are answered."""
    wishes = ["fine"] * 5 + ["die"] + ["fine"] * 6
    results = [result async for result in client.map(fragile(*wishes))]

    dead = results.pop(5)
    assert dead.status is Status.DEAD
    assert dead.failure is not None
    assert dead.failure.code == FailureCode.POISON
    assert all(result.ok for result in results)
    audit = await client.audit("fragile")
    assert (audit.lost, audit.doubled, audit.dead_letters) == (0, 0, 1)


@pytest.mark.slow
async def test_a_job_that_hangs_is_set_aside(client: AsyncClient) -> None:
    """Its replica is killed at the hard limit, and so is the next one, where it is alone."""
    results = [result async for result in client.map(fragile("fine", "hang", "fine"))]

    assert [result.status for result in results] == [Status.OK, Status.DEAD, Status.OK]
    hung = results[1].failure
    assert hung is not None
    assert "the replica is killed" in hung.message


async def test_jobs_of_a_killed_router_are_taken_over(client: AsyncClient, service: LocalService) -> None:
    """Those that it held and had not dispatched, and those whose answers nobody waited for any more."""
    receipts = await client.submit_many(fragile(*["sleep:0.05"] * 60))
    await asyncio.sleep(0.3)
    pid = (await asyncio.to_thread(service.counts))["fragile"]["pid"]
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    results = [await client.result(receipt, timeout_s=60) for receipt in receipts]

    assert all(result.ok for result in results)
    assert time.monotonic() - killed_s < 45

    async def settled() -> bool:
        audit = await client.audit("fragile")
        return audit.live == 0 and audit.lost == 0 and audit.doubled == 0

    await eventually(settled, within_s=10)
