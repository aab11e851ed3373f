"""A service behind sentinels: the master is found, dies, and another takes its place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from headrace import AsyncClient, ClientSettings, Job, RedisRoleError, RedisSetupError, RedisUnavailableError
from headrace.server.check import check_server
from support.redis_sentinel import SERVICE, WatchedRedis
from support.service import PlainService
from support.waiting import eventually

QUICK = ClientSettings(command_timeout_s=1, retries=0)


@pytest.fixture
def watched() -> Iterator[WatchedRedis]:
    with WatchedRedis() as running:
        yield running


async def test_the_master_fails_over(watched: WatchedRedis) -> None:
    """Router, replica and client find the new master by themselves, and what had been copied to it is finished."""
    async with AsyncClient(watched.url) as client:
        async with PlainService(watched.url, "echo") as service:
            jobs = [Job(model="echo", input=n) for n in range(200)]
            assert [result.unwrap() async for result in client.map(jobs)] == list(range(200))
            assert watched.master_port == watched.servers[0].port
        # Nobody serves now, so that what waits is known to the replica for certain.
        waiting = [await client.submit(Job(model="echo", input=n)) for n in range(50)]
        watched.wait_until_copied()
        watched.servers[0].kill()
        async with PlainService(watched.url, "echo") as service:
            results = [await client.result(receipt, timeout_s=30) for receipt in waiting]
            assert [result.unwrap() for result in results] == list(range(50))
            assert (await client.run(Job(model="echo", input="after"), timeout_s=10)).unwrap() == "after"
            await eventually(lambda: service.router.counts.answered == 51)
        assert watched.master_port == watched.servers[1].port
        audit = await client.audit("echo")
        assert (audit.submitted, audit.ok, audit.live) == (251, 251, 0)


async def test_a_failover_under_load(watched: WatchedRedis) -> None:
    """Jobs that were handed over are submitted again under their ids until they are answered: none is missing."""
    async with PlainService(watched.url, "echo") as service, AsyncClient(watched.url) as client:
        await client.run(Job(model="echo", input="warm"), timeout_s=10)
        watched.wait_until_copied()
        jobs = [Job(model="echo", input=n) for n in range(100)]
        watched.servers[0].kill()
        answers = await eventually(lambda: answers_to(client, jobs), within_s=40)
        assert answers == list(range(100))
        await eventually(lambda: service.router.counts.answered >= 101)


async def answers_to(client: AsyncClient, jobs: list[Job]) -> list[int] | None:
    try:
        return [result.unwrap() async for result in client.map(jobs)]
    except RedisUnavailableError:
        return None


async def test_an_old_master_that_comes_back_is_a_replica(watched: WatchedRedis) -> None:
    """Whoever still knows its address alone is told what it is, and how to name the service instead."""
    old, new = watched.servers
    async with AsyncClient(watched.url) as client:
        await client.ping()
        old.kill()
        await eventually(lambda: watched.master_port == new.port, within_s=30)
        old.start()
        with redis.Redis.from_url(old.url) as admin:  # as the sentinels would, ten seconds later
            admin.replicaof("127.0.0.1", str(new.port))
        async with PlainService(watched.url, "echo"):
            assert (await client.run(Job(model="echo", input="x"), timeout_s=10)).unwrap() == "x"
    facts, _ = await check_server(watched.url)
    assert facts.role == "master"
    with pytest.raises(RedisRoleError, match=r"name its master, or the sentinels as redis\+sentinel://"):
        await check_server(f"redis://127.0.0.1:{old.port}")


async def test_what_can_be_wrong_with_the_url(watched: WatchedRedis) -> None:
    """A sentinel taken for a server, a name that the sentinels do not know, sentinels that are away."""
    port = watched.sentinel_ports[0]
    with pytest.raises(RedisRoleError, match=r"is a sentinel, not a server; name it as redis\+sentinel://"):
        await check_server(f"redis://127.0.0.1:{port}")
    async with AsyncClient(f"redis+sentinel://127.0.0.1:{port}/other", settings=QUICK) as client:
        with pytest.raises(RedisUnavailableError, match="No master found for 'other'"):
            await client.ping()
    async with AsyncClient(f"redis+sentinel://:secret@127.0.0.1:1/{SERVICE}", settings=QUICK) as client:
        with pytest.raises(RedisUnavailableError, match="No master found") as caught:
            await client.ping()
    assert "secret" not in str(caught.value)


async def answers(client: AsyncClient) -> bool:
    try:
        await client.ping()
    except RedisUnavailableError:
        return False
    return True


async def test_passwords_of_the_servers_and_of_the_sentinels() -> None:
    """They may differ; each goes to whom it is for."""
    options = {"requirepass": "for-servers", "masterauth": "for-servers"}
    lines = "requirepass for-sentinels\nsentinel auth-pass {service} for-servers"
    with WatchedRedis(options=options, sentinel_lines=lines) as watched:
        url = watched.url.replace("://", "://:for-servers@")
        async with AsyncClient(f"{url}?sentinel_password=for-sentinels") as client:
            await eventually(lambda: answers(client), within_s=20)
        for wrong in (url, f"{watched.url}?sentinel_password=for-sentinels"):
            async with AsyncClient(wrong, settings=QUICK) as client:
                with pytest.raises((RedisSetupError, RedisUnavailableError)) as caught:
                    await client.ping()
                assert "for-" not in str(caught.value)
