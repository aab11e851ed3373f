"""What every test may ask for: a real server, a clean one, and a check of what the test leaves in it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
from hypothesis import HealthCheck, settings

from headrace.keys import GROUP, MODELS, keys_of
from headrace.models.shards import model_of
from headrace_cluster.embedded import EmbeddedServer
from support.service import PlainService

if TYPE_CHECKING:
    from support.groups import GroupScheduling

# A job in the background of a script ignores Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine may be slow at any moment, which says nothing about the code.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling | None:
    """Which process runs which tests, with `--dist loadgroup`."""
    from support.groups import GroupScheduling  # xdist may not be there

    return GroupScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """One real server for the whole run."""
    with EmbeddedServer(fsync="no", die_with_parent=True, options={"enable-debug-command": "yes"}) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The server, empty before the test; after it, every key has a TTL or is on the permanent list.

    A test that means to leave jobs behind says `@pytest.mark.leaves_jobs`.
    """
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield redis_server.url
        if request.node.get_closest_marker("leaves_jobs") is None:
            assert leaks(client) == []


def leaks(client: redis.Redis) -> list[str]:
    """What stands in Redis for ever and should not, and what is pending though nobody works on it."""
    models = {member.decode() for member in cast("set[bytes]", client.smembers(MODELS))}
    names = models | {model_of(model) for model in models}
    permanent = {MODELS}.union(*(keys_of(name).permanent for name in names))
    found = [
        f"{name.decode()} has no TTL"
        for name in client.scan_iter(count=1000)
        if client.ttl(name) == -1 and name.decode() not in permanent
    ]
    for model in models:
        for lane in keys_of(model).lanes:
            if pending := client.xpending(lane, GROUP)["pending"]:
                found.append(f"{lane} has {pending} pending entries")
    return found


@pytest.fixture
async def echo_service(redis_url: str) -> AsyncIterator[PlainService]:
    """A service in this process that answers the model `echo` with what it was given."""
    async with PlainService(redis_url, "echo") as service:
        yield service
