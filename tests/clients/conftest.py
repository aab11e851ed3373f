"""What the client's tests share: a service driven by hand, a client, and a look at what a test leaves open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import redis

from headrace import AsyncClient
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService
from support.leaks import holdings
from support.waiting import eventually


@pytest.fixture(scope="session", autouse=True)
def a_server_that_looks_at_its_clock_often(redis_server: EmbeddedServer) -> None:
    """Blocking reads end within milliseconds of their time, instead of a tenth of a second: tests end sooner."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("hz", 500)


@pytest.fixture
async def nothing_is_left_open() -> AsyncIterator[None]:
    """After the test this process has no task, thread, socket or file that it did not have before."""
    before = holdings()
    yield

    def left() -> dict[str, set[str]]:
        return {kind: names - before[kind] for kind, names in holdings().items() if names - before[kind]}

    with suppress(AssertionError):
        await eventually(lambda: not left(), within_s=3)
    assert left() == {}


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for this test alone, which it may kill, starve or lock; every write is on disk at once."""
    with EmbeddedServer(fsync="always", die_with_parent=True, options={"hz": "500"}) as server:
        yield server


@pytest.fixture
async def service(redis_url: str) -> AsyncIterator[HandService]:
    """The model `by-hand`, whose jobs the test answers itself."""
    async with HandService(redis_url) as service:
        yield service


@pytest.fixture
async def client(redis_url: str, service: HandService) -> AsyncIterator[AsyncClient]:
    """A client of the server that `service` serves."""
    async with AsyncClient(redis_url) as client:
        yield client
