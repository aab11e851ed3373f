"""Which servers fit: asked of a real one, and judged from what others say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from headrace.errors import RedisSetupError, RedisUnavailableError
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.redis_check import _fault, check_redis
from support.leaks import holdings


async def test_our_own_server_fits(redis_url: str) -> None:
    """And nothing stays open."""
    before = holdings()
    report = await check_redis(redis_url)
    assert report.server in ("redis", "valkey")
    assert report.append_only
    assert holdings() == before


async def test_without_an_append_only_file() -> None:
    """It fits, and says so."""
    with EmbeddedServer(die_with_parent=True, options={"appendonly": "no"}) as server:
        assert not (await check_redis(server.url)).append_only


async def test_a_server_that_does_not_answer() -> None:
    """Known at once, under the URL without its password."""
    with pytest.raises(RedisUnavailableError, match=r"redis://\*\*\*@localhost:1: "):
        await check_redis("redis://:secret@localhost:1")


async def test_a_replica_of_another(own_server: EmbeddedServer) -> None:
    """Writes would be refused one by one; better to know before."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.replicaof("localhost", "1")
        with pytest.raises(RedisSetupError, match="is a replica and takes no writes; name its master"):
            await check_redis(own_server.url)


FITTING: dict[str, Any] = {
    "redis_version": "7.0.15",
    "redis_mode": "standalone",
    "role": "master",
    "maxmemory_policy": "noeviction",
}


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ({}, None),
        ({"redis_version": "8.2.1"}, None),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, None),
        ({"redis_version": "255.255.255"}, None),
        ({"redis_version": ""}, None),
        ({"redis_version": "6.2.14"}, "is redis 6.2.14; headrace needs redis 7.0 or newer"),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.0"}, "is valkey 7.1.0; headrace needs valkey 7.2 or newer"),
        ({"redis_mode": "cluster"}, "runs as cluster"),
        ({"redis_mode": "sentinel"}, "runs as sentinel"),
        ({"maxmemory_policy": "volatile-ttl"}, "evicts keys when memory is short, and jobs with them (volatile-ttl)"),
    ],
)
def test_faults(info: dict[str, str], fault: str | None) -> None:
    """From the reply to INFO."""
    found = _fault(FITTING | info)
    assert found is None if fault is None else (found or "").startswith(fault)
