"""`durable="fsynced"`: a job counts as handed over when it is on the server's disk, or the call says that it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from headrace import (
    AsyncClient,
    ClientSettings,
    Job,
    RedisDurabilityError,
    RedisError,
    RedisUnavailableError,
    SubmitOutcome,
)
from headrace.keys import keys_of
from headrace.server import fsync as fsync_module
from headrace.server.facts import ServerFacts
from headrace.server.fsync import waits_truly
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService

MODEL = "by-hand"
FSYNCED = ClientSettings(durable="fsynced", command_timeout_s=1.5, retries=0)
JOB = Job(model=MODEL, input="x", id="job-1")
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@contextmanager
def a_server(fsync: str, **options: str) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(die_with_parent=True, options={"appendfsync": fsync, "hz": "500", **options}) as server:
        yield server


def has_waitaof(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as admin:
        return bool(admin.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "waitaof"))


# -- with a server that syncs before it answers -----------------------------------------------------------------------


async def test_with_always_every_reply_tells_of_the_disk() -> None:
    """The server syncs before it answers, so nothing more is waited for, and the job survives a crash."""
    with a_server("always") as server:
        async with HandService(server.url, MODEL) as service, AsyncClient(server.url, settings=FSYNCED) as client:
            await client.submit(JOB)
            server.kill()
            server.start()
            assert [entry.envelope.job_id for entry in await service.take()] == ["job-1"]


# -- with WAITAOF ---------------------------------------------------------------------------------------------------


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that relies on WAITAOF whatever the server."""
    monkeypatch.setattr(fsync_module, "waits_truly", lambda _: True)


def url_of_one_who_may_not_ask(server: EmbeddedServer) -> str:
    """A user who does not learn that the server never syncs."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">x", "~*", "+@all", "-config")
    return server.url.replace("unix://", "unix://plain:x@")


@pytest.mark.usefixtures("believing")
async def test_jobs_pass_once_they_are_on_disk() -> None:
    """As many as go into one call, and answers are waited for as ever."""
    with a_server("everysec") as server:
        if not has_waitaof(server):
            pytest.skip("the server on PATH is older than WAITAOF")
        settings = ClientSettings(durable="fsynced")
        async with HandService(server.url, MODEL) as service, AsyncClient(server.url, settings=settings) as client:
            service.keep_answering()
            results = [result async for result in client.map(Job(model=MODEL, input=n) for n in range(50))]
            assert [result.unwrap() for result in results] == list(range(50))


@pytest.mark.usefixtures("believing")
async def test_what_is_not_on_disk_is_not_acknowledged() -> None:
    """Neither at first, nor when the call is repeated on another connection, which writes nothing by itself."""
    with a_server("no") as server:
        if not has_waitaof(server):
            pytest.skip("the server on PATH is older than WAITAOF")
        url = url_of_one_who_may_not_ask(server)
        async with HandService(server.url, MODEL) as service:
            for _ in range(2):
                async with AsyncClient(url, settings=FSYNCED) as client:
                    with pytest.raises(
                        RedisUnavailableError, match="not on the server's disk after 1200 ms; repeating"
                    ):
                        await client.submit(JOB)
            await service.redis.config_set("appendfsync", "always")
            async with AsyncClient(url, settings=FSYNCED) as client:
                assert (await client.submit(JOB)).outcome is SubmitOutcome.DUPLICATE
            assert await client_audit(server) == (1, 1)


async def client_audit(server: EmbeddedServer) -> tuple[int, int]:
    async with AsyncClient(server.url) as client:
        audit = await client.audit(MODEL)
        return audit.submitted, audit.live


@pytest.mark.usefixtures("believing")
async def test_an_error_tells_nothing_of_the_job() -> None:
    """Though the script goes out in a pipeline, whose errors redis-py decorates with what was sent."""
    with a_server("everysec") as server:
        async with HandService(server.url, MODEL) as service, AsyncClient(server.url, settings=FSYNCED) as client:
            await service.redis.hset(keys_of(MODEL).meta, "lane_capacity", "many")
            job = Job(model=MODEL, input="a secret", inbox="a-secret-inbox")
            with pytest.raises(RedisError, match="script submit: ") as caught:
                await client.submit(job)
    assert "secret" not in str(caught.value)


# -- with a server that cannot promise it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fsync": "everysec", "appendonly": "no"}, r"appendonly no.*run: CONFIG SET appendonly yes"),
        ({"fsync": "no"}, "appendfsync no"),
    ],
)
async def test_a_server_that_does_not_sync(options: dict[str, str], says: str) -> None:
    """An error before anything is handed over, and what would make it right."""
    with a_server(**options) as server:
        async with HandService(server.url, MODEL), AsyncClient(server.url, settings=FSYNCED) as client:
            with pytest.raises(RedisDurabilityError, match=says):
                await client.submit(JOB)
            assert await client_audit(server) == (0, 0)


async def test_a_server_whose_waitaof_cannot_be_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would answer before the write is on disk."""
    monkeypatch.setattr(fsync_module, "waits_truly", lambda _: False)
    with a_server("everysec") as server:
        async with HandService(server.url, MODEL), AsyncClient(server.url, settings=FSYNCED) as client:
            with pytest.raises(RedisDurabilityError, match="appendfsync always and leave durable at 'written'"):
                await client.submit(JOB)


@pytest.mark.parametrize(
    ("kind", "version", "truly"),
    [
        ("redis", (7, 0, 15), False),
        ("redis", (7, 2, 11), False),
        ("redis", (7, 4, 2), False),
        ("redis", (7, 4, 3), True),
        ("redis", (8, 0, 0), True),
        ("redis", (8, 10, 2), True),
        ("redis", (0, 0, 0), False),
        ("valkey", (7, 2, 14), False),
        ("valkey", (9, 1, 2), False),
    ],
)
def test_whose_waitaof_can_be_believed(kind: str, version: tuple[int, int, int], truly: bool) -> None:
    """Redis since the release that mended it; no Valkey so far."""
    assert waits_truly(ServerFacts(kind=kind, version=version, fsync="everysec")) is truly  # type: ignore[arg-type]
