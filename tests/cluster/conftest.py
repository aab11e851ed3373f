"""What the router's tests share: a server to ill-treat, and the audit that every one of them ends with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from headrace_cluster.embedded import EmbeddedServer


@pytest.fixture(scope="session", autouse=True)
def a_server_that_looks_at_its_clock_often(redis_server: EmbeddedServer) -> None:
    """Blocking reads end within milliseconds of their time, instead of a tenth of a second: tests end sooner."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("hz", 500)


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for this test alone, which it may kill, pause or empty; every write is on disk at once."""
    with EmbeddedServer(fsync="always", die_with_parent=True, options={"hz": "500"}) as server:
        yield server
