"""The users that `headrace acl` makes: each can do all of its work, and nothing that is not its business.

Whatever a flow needs and its user may not do stands in the server's ACL LOG, also where the code puts up with
the refusal; every test ends with a look there. So a script or a command that is new fails here until its
profile knows it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from headrace import AsyncClient, CancelOutcome, ClientSettings, Job, RedisSetupError
from headrace.acl import PROFILES, rules_of
from headrace.inboxes.lookup import read_records, read_stored
from headrace.keys import MODELS, keys_of
from headrace.messages import LaneEntry, Status
from headrace.models.dead_letters import drop_letters, read_letters, replay_letters
from headrace.models.overview import read_overviews
from headrace.models.registry import Limits, close_model, open_model, register
from headrace.scripts import ALL, ChunkOutcome, GiveBack, reap, release, retry, sweep
from headrace.server import fsync as fsync_module
from headrace.server.check import check_server
from headrace.server.connection import commands, execute
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.rollout.removal import bury_jobs, forget_models
from support.by_hand import HandService
from support.by_hand_streams import HandStream
from support.service import PlainService
from support.users import PASSWORD, is_since_7_2, make_users, refusals
from support.waiting import eventually

MODEL = "by-hand"
KEYS = keys_of(MODEL)
UrlOf = Callable[[str], str]


@pytest.fixture
def server(own_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A server that knows one user of each profile; at the end, nobody was refused anything."""
    with redis.Redis.from_url(own_server.url) as admin:
        make_users(admin)
        admin.acl_setuser("default", enabled=True, passwords="+root", keys=["*"], commands=["+@all"])
        admin.execute_command("AUTH", "root")
        yield own_server
        assert refusals(admin) == []


@pytest.fixture
def url_of(server: EmbeddedServer) -> UrlOf:
    """The server's URL for a user."""
    return lambda user: server.url.replace("unix://", f"unix://{user}:{PASSWORD}@")


# -- what they must -----------------------------------------------------------------------------------------------


async def test_jobs_run_from_end_to_end(url_of: UrlOf) -> None:
    """A router and a replica as workers; a producer with its own inbox, and a consumer with another."""
    async with PlainService(url_of("worker"), "echo"), AsyncClient(url_of("producer")) as producer:
        results = [result async for result in producer.map(Job(model="echo", input=n) for n in range(300))]
        assert [result.unwrap() for result in results] == list(range(300))
        receipts = await producer.submit_many(
            [Job(model="echo", input=n, inbox="theirs", id=f"j{n}") for n in range(9)]
        )
        assert (await producer.result(receipts[0], timeout_s=10)).unwrap() == 0
        assert (await producer.status(receipts[0])).state == "ok"
        assert (await producer.audit("echo")).submitted == 309
        assert await producer.models() == ["echo"]
        await producer.ping()
        assert [result async for result in producer.results("none", model="echo", after="$", idle_s=0.05)] == []
        assert await producer.trim("none", model="echo", through="0-1") == 0
        async with AsyncClient(url_of("consumer")) as consumer:
            got = [result async for result in consumer.results("theirs", model="echo", idle_s=0.3)]
            assert sorted(result.id for result in got) == [f"j{n}" for n in range(9)]
            assert (await consumer.result("j1", model="echo", timeout_s=10)).unwrap() == 1
            assert await consumer.trim("theirs", model="echo", through=got[-1].cursor) == 9
            assert (await consumer.status("j0", model="echo")).state == "ok"
            assert await consumer.models() == ["echo"]
            assert [result async for result in consumer.results("theirs", model="echo", after="$", idle_s=0.05)] == []


async def test_what_producers_do_on_bad_days(url_of: UrlOf) -> None:
    """Full lanes, duplicates, cancellation in every state, looking up what an earlier process began."""
    limits = Limits(lane_capacity=3)
    async with HandService(url_of("worker"), limits=limits) as service, AsyncClient(url_of("producer")) as producer:
        jobs = [Job(model=MODEL, input=n, id=f"j{n}", tenant=f"t{n % 2}") for n in range(3)]
        await producer.submit_many(jobs)
        await producer.submit_many(jobs)
        with suppress(Exception):
            await producer.submit(Job(model=MODEL, input="no room"))
        assert await producer.cancel("j0", model=MODEL) is CancelOutcome.CANCELLED
        running, other = await service.take()
        assert await producer.cancel(running.envelope.job_id, model=MODEL) is CancelOutcome.REQUESTED
        async with AsyncClient(url_of("consumer")) as consumer:
            for client in (producer, consumer):
                assert (await client.status(other.envelope.job_id, model=MODEL)).deliveries == 1
        await service.answer(running, other)
        assert (await producer.result("j0", model=MODEL, timeout_s=5)).status == "cancelled"
        redis_of_producer = commands(url_of("producer"))
        try:
            assert len([r for r in await read_records(redis_of_producer, MODEL, ["j0", "j1", "j2"]) if r]) == 3
            assert len(await read_stored(redis_of_producer, MODEL, producer.inbox, "0")) >= 1
        finally:
            await redis_of_producer.aclose()


async def test_an_admin_removes_a_model(url_of: UrlOf) -> None:
    """As `headrace apply` does: closed, its jobs set aside, and forgotten."""
    redis_of_admin, redis_of_worker = commands(url_of("admin")), commands(url_of("worker"))
    async with AsyncClient(url_of("producer")) as producer:
        await register(redis_of_worker, MODEL, Limits())
        await producer.submit(Job(model=MODEL, input="nobody runs it"))
        await close_model(redis_of_admin, MODEL, generation=1)
        assert await bury_jobs(redis_of_admin, url_of("admin"), MODEL, timeout_s=20) == 1
        assert await forget_models(redis_of_admin, [MODEL], served=[], timeout_s=5) == {MODEL: 1}
        await open_model(redis_of_admin, MODEL, Limits())
    await redis_of_admin.aclose()
    await redis_of_worker.aclose()


async def test_a_producer_that_waits_for_the_disk(
    url_of: UrlOf, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not read the configuration, which is put up with; what it needs otherwise it has."""
    monkeypatch.setattr(fsync_module, "waits_truly", lambda _: True)
    with redis.Redis.from_url(server.url, password="root") as admin:
        if not is_since_7_2(admin):
            pytest.skip("the server on PATH is older than WAITAOF")
    settings = ClientSettings(durable="fsynced")
    async with HandService(url_of("worker")) as service, AsyncClient(url_of("producer"), settings=settings) as producer:
        receipt = await producer.submit(Job(model=MODEL, input="x"))
        await service.answer_all()
        assert (await producer.result(receipt, timeout_s=5)).ok
    forget_that_the_configuration_was_asked_for(server)


def forget_that_the_configuration_was_asked_for(server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.url, password="root") as admin:
        assert {line.partition(": ")[2] for line in refusals(admin)} <= {"command config|get"}
        admin.execute_command("ACL", "LOG", "RESET")


async def test_all_that_becomes_of_a_job_in_a_worker_s_hands(url_of: UrlOf) -> None:
    """Another attempt at once and later, a dead letter, taking over from the dead, and giving back."""
    async with HandService(url_of("worker")) as service, AsyncClient(url_of("producer")) as producer:
        worker = service.redis
        await producer.submit_many([Job(model=MODEL, input=n, id=f"j{n}") for n in range(5)])
        at_once, later, dead, *_ = await service.take()
        assert await retry(worker, MODEL, [given_back(at_once, 0), given_back(later, 5)])
        await eventually(lambda: sweep(worker, MODEL))
        await service.fail(dead, status=Status.DEAD)
        await service.take()
        assert len(await reap(worker, MODEL, "heir")) == 4
        await release(worker, MODEL, "heir")
        assert len(await reap(worker, MODEL, "hand")) == 4
        await service.answer_all()
        audit = await producer.audit(MODEL)
        assert (audit.ok, audit.dead, audit.live, audit.dead_letters) == (4, 1, 0, 1)


async def test_streams_from_end_to_end(url_of: UrlOf) -> None:
    """Watched by the producer and by a consumer of another inbox, taken over, called off."""
    async with HandService(url_of("worker")) as service, AsyncClient(url_of("producer")) as producer:
        own = await producer.stream(Job(model=MODEL, input="x"), timeout_s=10).start()
        named = await producer.stream(Job(model=MODEL, input="x", id="named", inbox="box"), timeout_s=10).start()
        for decoder in await HandStream.take(service, 2):
            await decoder.say("a")
            successor = await HandStream.begin(service, decoder.entry)
            assert await decoder.say("b") is ChunkOutcome.FENCED
            await successor.finish("b")
        async with AsyncClient(url_of("consumer")) as consumer:
            for stream in (own, named, consumer.stream("named", model=MODEL, timeout_s=10)):
                assert "".join([piece async for piece in stream]) == "ab"
        later = await producer.submit(Job(model=MODEL, input="x"))
        [decoder] = await HandStream.take(service)
        await decoder.say("a")
        await retry(service.redis, MODEL, [given_back(decoder.entry, 60_000)])
        assert await producer.cancel(later) is CancelOutcome.CANCELLED


def given_back(entry: LaneEntry, delay_ms: int) -> GiveBack:
    return GiveBack(entry.lane, entry.entry_id, entry.text, delay_ms)


async def test_a_monitor_sees_counts_and_states(url_of: UrlOf) -> None:
    """What `headrace status` shows, and what the server is like."""
    async with HandService(url_of("worker")) as service, AsyncClient(url_of("producer")) as producer:
        await producer.submit(Job(model=MODEL, input="x", id="job-1"))
        await service.take()
        monitor = commands(url_of("monitor"))
        try:
            [overview] = await read_overviews(monitor, [MODEL])
            assert (overview.delivered, overview.waiting) == (1, 0)
            assert await execute(monitor, "XINFO", "CONSUMERS", KEYS.lanes[1], "g") is not None
            assert b"job-1" in await execute(monitor, "GET", KEYS.record("job-1"))
        finally:
            await monitor.aclose()
        async with AsyncClient(url_of("monitor")) as client:
            assert (await client.status("job-1", model=MODEL)).deliveries == 1
            assert (await client.audit(MODEL)).live == 1
            assert await client.models() == [MODEL]


async def test_an_admin_works_on_dead_letters(url_of: UrlOf) -> None:
    """Lists, replays and drops them; and asks the server for whatever may be wrong."""
    async with HandService(url_of("worker")) as service, AsyncClient(url_of("producer")) as producer:
        await producer.submit_many([Job(model=MODEL, input=n, id=f"j{n}") for n in range(2)])
        await service.fail(*await service.take(), status=Status.DEAD)
        admin = commands(url_of("admin"))
        try:
            letters = [letter.letter_id async for letter in read_letters(admin, MODEL)]
            await replay_letters(admin, MODEL, letters[:1])
            assert await drop_letters(admin, MODEL, letters[1:]) == 1
            assert await execute(admin, "ACL", "WHOAMI") == b"admin"
            assert await execute(admin, "CLIENT", "LIST")
            assert await execute(admin, "SCAN", "0", "COUNT", 10)
        finally:
            await admin.aclose()
        assert (await check_server(url_of("admin"))).facts.fsync == "always"


async def test_a_worker_judges_its_server(url_of: UrlOf, server: EmbeddedServer) -> None:
    """As far as it may ask; the configuration stays the administrator's."""
    facts, findings = await check_server(url_of("worker"))
    assert facts.append_only
    assert [finding for finding in findings if "CONFIG GET is not allowed" in finding.problem]
    forget_that_the_configuration_was_asked_for(server)


# -- what they must not ----------------------------------------------------------------------------------------------

EVERYBODY = [
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("RESTORE", KEYS.counters, "0", "x"),
    ("MIGRATE", "host", "1", KEYS.counters, "0", "1"),
    ("MODULE", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("ACL", "SETUSER", "me", "allkeys"),
    ("MONITOR",),
    ("EVAL", "return 1", "0"),
    ("SET", "elsewhere", "x"),
    ("GET", "elsewhere"),
]
FORBIDDEN: dict[str, list[tuple[str, ...]]] = {
    "producer": [
        ("XRANGE", KEYS.lanes[1], "-", "+"),
        ("XREADGROUP", "GROUP", "g", "me", "STREAMS", KEYS.lanes[1], ">"),
        ("XACK", KEYS.lanes[1], "g", "1-1"),
        ("XTRIM", KEYS.lanes[1], "MAXLEN", "0"),
        ("HSET", KEYS.meta, "lane_capacity", "1"),
        ("HSET", KEYS.counters, "submitted", "0"),
        ("DEL", KEYS.lanes[1]),
        ("DEL", KEYS.record("a")),
        ("XRANGE", KEYS.dead_letters, "-", "+"),
        ("SADD", MODELS, "mine"),
        ("SET", KEYS.heartbeat("x"), "1"),
        ("CONFIG", "GET", "requirepass"),
        ("INFO",),
        ("SCAN", "0"),
    ],
    "consumer": [
        ("EVALSHA", "0" * 40, "1", KEYS.prefix),
        ("XADD", KEYS.inbox("a"), "*", "e", "x"),
        ("XADD", KEYS.lanes[1], "*", "e", "x"),
        ("XRANGE", KEYS.lanes[1], "-", "+"),
        ("SET", KEYS.record("a"), "x"),
        ("DEL", KEYS.inbox("a")),
        ("HGETALL", KEYS.tenants),
        ("SCAN", "0"),
    ],
    "worker": [
        ("XREAD", "STREAMS", KEYS.inbox("a"), "0"),
        ("XRANGE", KEYS.inbox("a"), "-", "+"),
        ("XRANGE", KEYS.dead_letters, "-", "+"),
        ("XTRIM", KEYS.lanes[1], "MAXLEN", "0"),
        ("DEL", KEYS.lanes[1]),
        ("DEL", KEYS.counters),
        ("XGROUP", "DESTROY", KEYS.lanes[1], "g"),
        ("CONFIG", "GET", "requirepass"),
        ("SCAN", "0"),
    ],
    "monitor": [
        ("XRANGE", KEYS.lanes[1], "-", "+"),
        ("XREADGROUP", "GROUP", "g", "me", "STREAMS", KEYS.lanes[1], ">"),
        ("XREAD", "STREAMS", KEYS.inbox("a"), "0"),
        ("XRANGE", KEYS.dead_letters, "-", "+"),
        ("XADD", KEYS.lanes[1], "*", "e", "x"),
        ("HINCRBY", KEYS.counters, "ok", "1"),
        ("SLOWLOG", "GET"),
        ("CONFIG", "GET", "requirepass"),
        ("SCAN", "0"),
    ],
    "admin": [],
}


@pytest.mark.parametrize("user", FORBIDDEN)
async def test_what_is_refused(own_server: EmbeddedServer, user: str) -> None:
    """By the server, as this very user."""
    with redis.Redis.from_url(own_server.url) as admin:
        make_users(admin)
    with redis.Redis.from_url(own_server.url, username=user, password=PASSWORD) as client:
        allowed = [words for words in [*EVERYBODY, *FORBIDDEN[user]] if not refused(client, words)]
    assert allowed == []


def refused(client: redis.Redis, words: tuple[str, ...]) -> bool:
    try:
        client.execute_command(*words)  # type: ignore[no-untyped-call]
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError:
        return False
    return False


async def test_another_model_s_keys(own_server: EmbeddedServer) -> None:
    """A user for one model has no business with the others, not even with those whose names begin alike."""
    with redis.Redis.from_url(own_server.url) as admin:
        make_users(admin, (MODEL,))
    url = own_server.url.replace("unix://", f"unix://producer:{PASSWORD}@")
    async with HandService(own_server.url) as one, HandService(own_server.url, f"{MODEL}-2"):
        async with AsyncClient(url, settings=ClientSettings(retries=0)) as producer:
            assert (await producer.submit(Job(model=MODEL, input="x"))).accepted
            with pytest.raises(RedisSetupError, match="ACL"):
                await producer.submit(Job(model=f"{MODEL}-2", input="x"))
        await one.answer_all()


# -- nothing is forgotten ---------------------------------------------------------------------------------------------


def commands_of(script_text: str) -> set[str]:
    code = "\n".join(line.partition("--")[0] for line in script_text.splitlines())
    return {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", code)}


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_every_script_belongs_to_somebody_who_may_run_all_of_it(script: Any) -> None:
    """A new script needs a profile, and a new command in one a grant."""
    profiles = [profile for profile in PROFILES.values() if script in profile.scripts]
    assert [profile.name for profile in profiles if profile.name != "admin"] or script.name in ("replay", "forget")
    for profile in profiles:
        rules = " ".join(rules_of(profile))
        if "+@write" not in rules:
            granted = set(re.findall(r"\+([a-z]+)", rules))
            assert commands_of(script.text) <= granted, profile.name


def test_rules_for_some_models_name_each_of_them() -> None:
    """And what all of them share once."""
    rules = rules_of(PROFILES["producer"], ["one", "two"])
    assert sum("evalsha" in rule for rule in rules) == 2
    assert sum(MODELS in rule for rule in rules) == 1
    assert not [rule for rule in rules if "*}" in rule]


async def test_all_users_at_once(server: EmbeddedServer, url_of: UrlOf) -> None:
    """The users that were made are those that there are, and the default one needs a password."""
    with redis.Redis.from_url(server.url, password="root") as admin:
        assert set(admin.acl_users()) == {"default", *PROFILES}
    await asyncio.gather(*(pings(url_of(user)) for user in PROFILES))


async def pings(url: str) -> None:
    async with AsyncClient(url) as client:
        await client.ping()
