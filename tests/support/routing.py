"""Jobs for a router, and what is looked at when it has run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace import AsyncClient, Job
from headrace_cluster.scheduling.routing import RoutingPolicy

__all__ = ["MODEL", "assert_all_accounted_for", "idle", "jobs", "outputs_of", "policy"]

MODEL = "m"


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, **fields})


def jobs(count: int, **fields: Any) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}", **fields) for n in range(count)]


async def outputs_of(client: AsyncClient, some: Sequence[Job]) -> list[Any]:
    return [result.unwrap() async for result in client.map(some)]


async def assert_all_accounted_for(client: AsyncClient, submitted: int) -> None:
    audit = await client.audit(MODEL)
    assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (submitted, submitted, 0, 0, 0)


async def idle(client: AsyncClient) -> bool:
    return (await client.audit(MODEL)).live == 0
