"""A Redis that says no: wrong credentials, no rights, no memory, no master; and which Redis it is at all."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import redis

from headrace import AsyncClient, Client, ClientSettings, Job, RedisError, RedisFullError, RedisSetupError
from headrace.errors import RedisUnavailableError
from headrace.keys import keys_of
from headrace.server.connection import DEFAULT_URL, URL_VARIABLE, commands, redacted, resolve_url
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")
SECRET = "tr0ub4dor&3"
QUICK = ClientSettings(command_timeout_s=1, retries=1)


@pytest.fixture
def locked_server(own_server: EmbeddedServer) -> EmbeddedServer:
    """A server that asks for a password, and knows a user who may do next to nothing."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">look", "~*", "+ping", "+get")
        admin.config_set("requirepass", SECRET)
    return own_server


def with_credentials(server: EmbeddedServer, credentials: str) -> str:
    return f"unix://{credentials}@{server.socket}"


# -- credentials ---------------------------------------------------------------------------------------------------


async def test_the_right_password(locked_server: EmbeddedServer) -> None:
    """Credentials stand in the URL."""
    async with AsyncClient(with_credentials(locked_server, f":{SECRET.replace('&', '%26')}")) as client:
        await client.ping()


async def test_a_wrong_password_is_a_setup_error(locked_server: EmbeddedServer) -> None:
    """Trying again would not help, so it is not "unavailable"."""
    async with AsyncClient(with_credentials(locked_server, ":guess"), settings=QUICK) as client:
        with pytest.raises(RedisSetupError, match="password"):
            await client.ping()


async def test_no_password_where_one_is_asked_for(locked_server: EmbeddedServer) -> None:
    """NOAUTH is a setup error too."""
    async with AsyncClient(locked_server.url, settings=QUICK) as client:
        with pytest.raises(RedisSetupError, match=r"(Authentication required|unauthenticated).*check the password"):
            await client.submit(Job(model=MODEL, input="x"))


async def test_a_user_without_the_rights(locked_server: EmbeddedServer) -> None:
    """The error says which right is missing, and where to look."""
    async with AsyncClient(with_credentials(locked_server, "reader:look"), settings=QUICK) as client:
        await client.ping()
        with pytest.raises(RedisSetupError, match=r"(?i)hmget.*check the password, the user and its ACL"):
            await client.submit(Job(model=MODEL, input="x"))


async def test_who_waits_is_told_when_the_inbox_may_not_be_read(locked_server: EmbeddedServer) -> None:
    """A reader that never will be let in ends the waiting, instead of trying for ever."""
    async with AsyncClient(with_credentials(locked_server, "reader:look"), settings=QUICK) as client:
        shard = f"{MODEL}#0"  # of a shard nothing is asked before
        client.own_inbox.demultiplexer(shard).open("job")
        with pytest.raises(RedisSetupError):
            await client.result("job", model=shard, timeout_s=5)


@pytest.mark.parametrize("credentials", [f":{SECRET}x", f"default:{SECRET}x"])
async def test_the_password_is_never_shown(
    locked_server: EmbeddedServer, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in `repr`, nor in an error and its causes, nor in a log line."""
    caplog.set_level(logging.DEBUG)
    async with AsyncClient(with_credentials(locked_server, credentials), settings=QUICK) as client:
        shown = [repr(client)]
        for call in (client.ping(), client.submit(Job(model=MODEL, input="x")), client.result("j", model=MODEL)):
            with pytest.raises(RedisSetupError) as caught:
                await call
            shown += causes(caught.value)
        shown += [record.getMessage() for record in caplog.records]

    assert shown
    assert not [text for text in shown if SECRET in text]


def causes(error: BaseException | None) -> list[str]:
    """What a traceback would print."""
    shown = []
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return shown


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/0@host:6379",
        f"redis://user:{SECRET}#1@host",
        f"redis://user:a?{SECRET}@host:1",
        f"redis://user:{SECRET}@host:port/0",
        f"redis://[{SECRET}@host",
        f"user:{SECRET}@host",
        f"http://user:{SECRET}@host/0?password={SECRET}",
        f"redis://host/0?password={SECRET}&socket_timeout=never",
        f"redis://host/0?{SECRET}=1",
    ],
)
def test_a_malformed_url_shows_no_password_either(url: str) -> None:
    """A password with unescaped special characters is the commonest way to get a URL wrong."""
    with pytest.raises(RedisSetupError, match="not a Redis URL") as caught:
        commands(url)

    # The synchronous client connects only at its first call, so its `repr` can be had for any URL.
    assert not [text for text in [*causes(caught.value), redacted(url), repr(Client(url))] if SECRET in text]
    assert "percent-encoded" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://user:secret@example.org/3?ssl_cert_reqs=none", "rediss://user:***@example.org/3"),
        ("redis://:secret@example.org", "redis://***@example.org"),
        ("redis://secret@example.org", "redis://***@example.org"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://user:secret@/run/redis.sock?db=1", "unix://user:***@/run/redis.sock"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    """Enough to know the server by."""
    assert redacted(url) == shown


# -- refusals of the server ------------------------------------------------------------------------------------------


async def test_a_full_redis(own_server: EmbeddedServer) -> None:
    """At `maxmemory` with `noeviction`, SUBMIT is refused by name; what is there can still be read and finished."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url) as client:
        receipt = await client.submit(Job(model=MODEL, input="before"))
        taken = await service.take()
        await service.redis.config_set("maxmemory", "1")
        with pytest.raises(RedisFullError, match="maxmemory"):
            await client.submit(Job(model=MODEL, input="now"))

        await service.answer(*taken, output="finished all the same")

        assert (await client.result(receipt, timeout_s=5)).unwrap() == "finished all the same"
        await service.redis.config_set("maxmemory", "0")
        audit = await client.audit(MODEL)
        assert (audit.submitted, audit.ok, audit.lost, audit.doubled) == (1, 1, 0, 0)


async def test_a_full_redis_is_told_at_once(own_server: EmbeddedServer) -> None:
    """There is no point in the connection's own retries against a full server."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url) as client:
        await service.redis.config_set("maxmemory", "1")
        async with asyncio.timeout(0.5):
            with pytest.raises(RedisFullError):
                await client.submit(Job(model=MODEL, input="x"))
        await service.redis.config_set("maxmemory", "0")


async def test_a_replica_of_redis_refuses_writes(own_server: EmbeddedServer) -> None:
    """In the middle of a failover the old master is read-only: unavailable, and worth another try."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url, settings=QUICK) as client:
        await service.redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
        with pytest.raises(RedisUnavailableError, match="read only replica"):
            await client.submit(Job(model=MODEL, input="x"))
        await service.redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]

        assert (await client.submit(Job(model=MODEL, input="x"))).accepted


async def test_a_master_without_its_replicas_refuses_writes(own_server: EmbeddedServer) -> None:
    """NOREPLICAS passes, too."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url, settings=QUICK) as client:
        await service.redis.config_set("min-replicas-to-write", "1")
        with pytest.raises(RedisUnavailableError, match="NOREPLICAS"):
            await client.submit(Job(model=MODEL, input="x"))
        await service.redis.config_set("min-replicas-to-write", "0")


async def test_other_errors_of_the_server_are_redis_errors(redis_url: str, service: HandService) -> None:
    """What we did not foresee is still of our tree, and says what was tried."""
    await service.redis.hset(keys_of(MODEL).meta, "lane_capacity", "many")
    async with AsyncClient(redis_url) as client:
        with pytest.raises(RedisError, match="script submit"):
            await client.submit(Job(model=MODEL, input="x"))


# -- which server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that was told nothing, with an empty runtime directory."""
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_default_server(no_environment: Path) -> None:
    """Nobody says which: Redis on its usual port."""
    assert resolve_url() == resolve_url("") == DEFAULT_URL


def test_a_running_embedded_server_comes_before_the_default(no_environment: Path) -> None:
    """What `headrace serve` started is found by its socket."""
    (no_environment / "headrace").mkdir()
    (no_environment / "headrace" / "redis.sock").touch()

    assert resolve_url() == f"unix://{no_environment}/headrace/redis.sock"


def test_the_environment_comes_before_the_embedded_server(
    no_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HEADRACE_REDIS_URL` is the deployment's word."""
    monkeypatch.setenv(URL_VARIABLE, "redis://from-the-environment")

    assert resolve_url() == "redis://from-the-environment"


def test_the_argument_comes_first(no_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program says itself outranks everything."""
    monkeypatch.setenv(URL_VARIABLE, "redis://from-the-environment")

    assert resolve_url("redis://from-the-program") == "redis://from-the-program"


async def test_what_the_code_relies_on_outranks_the_url(redis_url: str) -> None:
    """`decode_responses` and `protocol` in a URL's query would change what replies look like."""
    async with HandService(redis_url) as service:
        service.keep_answering()
        async with AsyncClient(f"{redis_url}?decode_responses=true&socket_timeout=0.001") as client:
            assert (await client.run(Job(model=MODEL, input="x"), timeout_s=5)).ok
