"""`headrace doctor` and `headrace top` on a Ray that runs: what they say of its nodes, deployments and batches."""

from __future__ import annotations

import asyncio

from headrace import AsyncClient, Job
from headrace.doctor import Level
from headrace.models.snapshot import SnapshotReader
from headrace.server.connection import commands
from headrace_cluster.cli.top import watch
from headrace_cluster.doctor.ray_cluster import examine_ray
from headrace_cluster.local import LocalService


def test_the_doctor_finds_the_cluster_well(service: LocalService) -> None:
    """The connection that this process has is used, and left as it is."""
    found = examine_ray(None, service.config)
    assert [diagnosis.what for diagnosis in found if diagnosis.level is Level.ERROR] == []
    assert "1 nodes" in found[0].what


async def test_top_shows_replicas_and_batches(service: LocalService, client: AsyncClient) -> None:
    """Of each pool as Serve tells them; batches as the router counts them."""
    receipts = await client.submit_many([Job(model="echo", input=n) for n in range(20)])
    for receipt in receipts:
        await client.result(receipt, timeout_s=30)
    redis = commands(service.url)
    watcher = watch("auto")
    try:
        snapshot = await asyncio.to_thread(watcher.complete, await SnapshotReader(redis).read())
    finally:
        watcher.close()
        await redis.aclose()
    models = {model.name: model for model in snapshot.models}
    [pool] = models["echo"].pools
    assert (pool.name, pool.replicas, pool.status) == ("echo@cpu", 2, "healthy")
    assert models["echo"].batch_jobs is not None
    assert models["echo"].batch_jobs >= 1
    assert [pool.name for pool in models["hot#0"].pools] == ["hot@cpu"]
    assert sorted(pool.name for pool in models["fragile"].pools) == ["fragile@one", "fragile@two"]
