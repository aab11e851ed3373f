"""A service that starts while its Redis is away, full, or not fit to serve it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import redis

from headrace import AsyncClient, Job, RedisDurabilityError, RedisEvictionError, RedisUnavailableError
from headrace.keys import MODELS
from headrace.server.check import wait_for_server
from headrace_cluster.config.settings import load_config
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService
from support.service import PlainService
from support.waiting import eventually

ECHO = {"models": {"echo": {"engine": {"kind": "echo"}}}}
EVICTING = {"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}


async def test_redis_is_away_when_a_router_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It waits, says so, and judges the server when it comes."""
    server = EmbeddedServer(tmp_path, fsync="always", die_with_parent=True)
    with caplog.at_level(logging.WARNING, logger="headrace.server"):
        waiting = asyncio.create_task(wait_for_server(server.url))
        await eventually(lambda: "waiting for Redis: " in caplog.text)
        assert not waiting.done()
        with server:
            await asyncio.wait_for(waiting, timeout=10)


async def test_it_comes_and_does_not_fit(tmp_path: Path) -> None:
    """Waiting longer would not help."""
    server = EmbeddedServer(tmp_path, die_with_parent=True, options=EVICTING)
    waiting = asyncio.create_task(wait_for_server(server.url))
    with server, pytest.raises(RedisEvictionError, match=r"volatile-lru.*CONFIG SET maxmemory-policy noeviction"):
        await asyncio.wait_for(waiting, timeout=10)


async def test_nobody_looks(tmp_path: Path) -> None:
    """With `redis.checks: off` not even whether it is there."""
    await asyncio.wait_for(wait_for_server(f"unix://{tmp_path}/nowhere", checks="off"), timeout=1)


async def test_redis_is_full_when_a_router_starts(own_server: EmbeddedServer) -> None:
    """Nothing can be registered; the router goes on trying, and starts when there is room."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.config_set("maxmemory", "1")
        starting = PlainService(own_server.url, "echo")
        entering = asyncio.create_task(starting.__aenter__())
        done, _ = await asyncio.wait({entering}, timeout=0.7)
        assert not done
        assert not admin.exists(MODELS)
        admin.config_set("maxmemory", "0")
        await asyncio.wait_for(entering, timeout=10)
    async with AsyncClient(own_server.url) as client:
        assert (await client.run(Job(model="echo", input="x"), timeout_s=10)).unwrap() == "x"
    await starting.__aexit__(None, None, None)


def service(url: str, **redis_settings: str) -> LocalService:
    return LocalService(load_config(ECHO | {"redis_url": url, "redis": redis_settings}))


def test_headrace_serve_looks_before_it_starts_anything(tmp_path: Path) -> None:
    """Neither Ray nor a replica for a server that is away, or that would lose jobs."""
    with pytest.raises(RedisUnavailableError), service(f"unix://{tmp_path}/nowhere"):
        pass
    with EmbeddedServer(die_with_parent=True, options=EVICTING) as server, pytest.raises(RedisEvictionError):
        service(server.url).__enter__()
    less = pytest.raises(RedisDurabilityError, match="appendfsync everysec, and always is asked for")
    with EmbeddedServer(die_with_parent=True) as server, less:
        service(server.url, durability="always").__enter__()
