"""Redis under the router: killed, paused, emptied, cut off. Nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from typing import Any

import pytest

from headrace import AsyncClient, ClientSettings, Job, scripts
from headrace.keys import GROUP, keys_of
from headrace.models.registry import Limits, register
from headrace.server.connection import commands, execute
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.router.model_router import ModelRouter
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.engines.echo import EchoEngine
from support.bad_days import GatedEngine, RecordingEngine, SlowEngine
from support.by_hand import HandService
from support.local_pool import LocalPool
from support.proxy import Proxy
from support.service import PlainService, leased
from support.waiting import eventually

MODEL = "m"
PATIENT = ClientSettings(retries=20)


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, **fields})


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}") for n in range(count)]


async def all_ended(client: AsyncClient, count: int) -> bool:
    audit = await client.audit(MODEL)
    return audit.submitted == count and audit.live == 0


async def assert_all_accounted_for(client: AsyncClient, submitted: int) -> None:
    audit = await client.audit(MODEL)
    assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (submitted, submitted, 0, 0, 0)


# -- the server -------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_killed_again_and_again(own_server: EmbeddedServer) -> None:
    """With every write on disk: the map goes on through each crash, in order, and the audit is exact."""
    engines = SlowEngine(0.002), SlowEngine(0.002)
    async with (
        PlainService(own_server.url, MODEL, *engines, policy=policy(forming=FormingPolicy(max_jobs=8))),
        AsyncClient(own_server.url, settings=PATIENT) as client,
    ):
        outputs = []
        async for result in client.map(jobs(1500), in_flight=150):
            outputs.append(result.unwrap())
            if len(outputs) % 400 == 200:
                own_server.kill()
                own_server.start()

        assert outputs == list(range(1500))
        await assert_all_accounted_for(client, 1500)


async def test_a_server_that_is_away_for_a_while(own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    """Answers that were computed meanwhile wait for it; the router says that it is not reachable."""
    engine = GatedEngine()
    async with (
        PlainService(own_server.url, MODEL, engine, policy=policy()) as service,
        AsyncClient(own_server.url, settings=PATIENT) as client,
    ):
        receipts = await client.submit_many(jobs(100))
        await eventually(lambda: service.router.counts.dispatched > 0)
        own_server.kill()
        await eventually(lambda: not service.router.reachable)
        engine.open()
        await eventually(lambda: any("answers of m wait" in record.message for record in caplog.records))
        own_server.start()
        await eventually(lambda: service.router.reachable)

        assert [(await client.result(receipt, timeout_s=10)).unwrap() for receipt in receipts] == list(range(100))
        await assert_all_accounted_for(client, 100)
        assert sorted(engine.ran) == list(range(100)), "nothing was computed twice"


@pytest.mark.parametrize("waiting", [128, 1000])
async def test_an_outage_longer_than_a_call_may_take_is_no_time_out(own_server: EmbeddedServer, waiting: int) -> None:
    """A replica cannot finish while Redis is away, so the time of its call stands still.

    Also where the router has no credit left, and so no read under way that would tell it of the outage.
    """
    engine = GatedEngine()
    async with (
        PlainService(own_server.url, MODEL, engine, policy=policy(call_timeout_s=0.3)) as service,
        AsyncClient(own_server.url, settings=PATIENT) as client,
    ):
        receipts = await client.submit_many(jobs(waiting))
        await eventually(lambda: service.router.counts.batches == 2)
        own_server.kill()
        await asyncio.sleep(0.8)
        assert service.router.counts.returned == 0
        engine.open()
        own_server.start()

        assert [(await client.result(receipt, timeout_s=10)).ok for receipt in receipts] == [True] * waiting
        await assert_all_accounted_for(client, waiting)


async def test_a_paused_server(redis_url: str) -> None:
    """CLIENT PAUSE, as in a failover by hand: everything waits, and goes on."""
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as client:
        results = client.map(jobs(600), in_flight=50)
        outputs = [(await anext(results)).unwrap() for _ in range(100)]
        await execute(client._redis, "CLIENT", "PAUSE", "400", "ALL")
        outputs += [result.unwrap() async for result in results]

        assert outputs == list(range(600))
        await assert_all_accounted_for(client, 600)


async def test_a_full_server(own_server: EmbeddedServer) -> None:
    """At `maxmemory` jobs cannot come, but those that are there are finished."""
    engine = GatedEngine()
    async with (
        PlainService(own_server.url, MODEL, engine, policy=policy()) as service,
        AsyncClient(own_server.url) as client,
    ):
        receipts = await client.submit_many(jobs(50))
        await eventually(lambda: service.router.counts.dispatched > 0)
        await execute(client._redis, "CONFIG", "SET", "maxmemory", "1")
        engine.open()
        results = [await client.result(receipt, timeout_s=5) for receipt in receipts]
        await execute(client._redis, "CONFIG", "SET", "maxmemory", "0")

        assert all(result.ok for result in results)
        await assert_all_accounted_for(client, 50)


async def test_redis_is_down_when_the_router_starts(own_server: EmbeddedServer) -> None:
    """It waits, and makes the model known when Redis comes."""
    own_server.kill()
    async with leased(own_server.url, MODEL) as lease:
        router = ModelRouter(MODEL, own_server.url, pool=LocalPool({}), policy=policy(), lease=lease)
        running = asyncio.create_task(router.run())
        await asyncio.sleep(0.1)
        assert not running.done()
        own_server.start()
        async with AsyncClient(own_server.url) as client:
            await eventually(lambda: known(client))
        router.stop()
        await asyncio.wait_for(running, 5)


async def known(client: AsyncClient) -> bool:
    return MODEL in await client.models()


# -- the group --------------------------------------------------------------------------------------------------------


async def test_the_group_is_destroyed(redis_url: str) -> None:
    """Somebody tidied up: the router makes the group anew, and every job is answered once."""
    engine = SlowEngine(0.002)
    forming = FormingPolicy(max_jobs=8)
    async with (
        PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)) as service,
        AsyncClient(redis_url) as client,
    ):
        receipts = await client.submit_many(jobs(400))
        for _ in range(3):
            before = service.router.counts.answered
            await answered_more_than(service, before + 20)
            for lane in keys_of(MODEL).lanes:
                await execute(client._redis, "XGROUP", "DESTROY", lane, GROUP)

        assert [(await client.result(receipt, timeout_s=10)).unwrap() for receipt in receipts] == list(range(400))
        await assert_all_accounted_for(client, 400)


async def answered_more_than(service: PlainService, count: int) -> None:
    await eventually(lambda: service.router.counts.answered > count)


async def test_everything_is_flushed(redis_url: str) -> None:
    """What was there is gone, as asked, also what the router holds; the service recovers, and takes new jobs."""
    engine = GatedEngine()
    async with PlainService(redis_url, MODEL, engine) as service, AsyncClient(redis_url) as client:
        await client.submit_many([Job(model=MODEL, input="flushed", inbox="nobody") for _ in range(300)])
        await eventually(lambda: service.router.counts.batches == 2)
        await execute(client._redis, "FLUSHALL")
        await eventually(lambda: known(client))
        engine.open()

        outputs = [result.unwrap() async for result in client.map(jobs(50))]

        assert outputs == list(range(50))
        await assert_all_accounted_for(client, 50)
        await eventually(lambda: not len(service.router.held))


# -- replies that are lost --------------------------------------------------------------------------------------------


async def test_entries_whose_reply_was_lost_are_adopted(redis_url: str) -> None:
    """The server gave them to this router, which never saw them: it asks what it was given."""
    async with (
        Proxy(redis_url) as proxy,
        AsyncClient(redis_url) as client,
        PlainService(proxy.url, MODEL, policy=policy()) as service,
    ):
        proxy.drop_reply_to("XREADGROUP")
        receipts = await client.submit_many(jobs(20))
        results = [await client.result(receipt, timeout_s=5) for receipt in receipts]

    assert proxy.dropped == 1
    assert [result.unwrap() for result in results] == list(range(20))
    assert service.router.counts.read == 20


async def test_adoption_goes_past_what_cannot_be_read(redis_url: str) -> None:
    """However many entries that are none lie before the good ones: pages of them are no end."""
    redis = commands(redis_url)
    await register(redis, MODEL, Limits())
    lane = keys_of(MODEL).lanes[1]
    for _ in range(600):
        await execute(redis, "XADD", lane, "*", "not", "a job")
    async with AsyncClient(redis_url) as client:
        receipts = await client.submit_many(jobs(3))
        await execute(redis, "XREADGROUP", "GROUP", GROUP, "router", "COUNT", 1000, "STREAMS", lane, ">")
        await execute(redis, "XTRIM", lane, "MAXLEN", 503)  # entries that are gone are named in the history, too
        async with PlainService(redis_url, MODEL, policy=policy(), consumer="router"):
            results = [await client.result(receipt, timeout_s=5) for receipt in receipts]
    await redis.flushall()
    await redis.aclose()

    assert [result.unwrap() for result in results] == [0, 1, 2]


async def test_a_complete_whose_reply_was_lost(redis_url: str) -> None:
    """The replica's retry is told that the jobs have ended; the consumer got one answer each."""
    await preload(redis_url)
    async with Proxy(redis_url) as proxy, AsyncClient(redis_url) as client:
        async with PlainService(proxy.url, MODEL, policy=policy()) as service:
            proxy.drop_reply_to(*[scripts.COMPLETE.sha] * 5)
            outputs = [result.unwrap() async for result in client.map(jobs(300), in_flight=60)]
        await assert_all_accounted_for(client, 300)

    assert outputs == list(range(300))
    assert proxy.dropped == 5
    assert service.router.counts.late > 0
    assert service.router.counts.answered + service.router.counts.late == 300


async def preload(url: str) -> None:
    redis = commands(url)
    await scripts.load(redis)
    await redis.aclose()


async def test_a_network_that_breaks_all_the_time(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Connections of router, replicas and client are cut, replies of every kind are lost, for as long as it takes."""
    caplog.set_level(logging.CRITICAL)
    await preload(redis_url)
    chance = random.Random(3)
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url, settings=PATIENT) as client:
        engines = [SlowEngine(0.001) for _ in range(3)]
        async with PlainService(proxy.url, MODEL, *engines, policy=policy()):

            async def ill_treating() -> None:
                while True:
                    await asyncio.sleep(0.03)
                    if chance.random() < 0.5:
                        proxy.cut()
                    elif not proxy.to_drop:
                        proxy.drop_reply_to(chance.choice([scripts.SUBMIT.sha, scripts.COMPLETE.sha, "XREADGROUP"]))

            trouble = asyncio.create_task(ill_treating())
            outputs = [result.unwrap() async for result in client.map(jobs(800), in_flight=100)]
            trouble.cancel()
            await asyncio.wait({trouble})
            proxy.forgive()
            await assert_all_accounted_for(client, 800)

    assert outputs == list(range(800))
    assert proxy.dropped > 3
    assert proxy.accepted > 20


# -- several routers --------------------------------------------------------------------------------------------------


async def test_two_routers_share_the_work(redis_url: str) -> None:
    """One group, two consumers: each job goes to one of them."""
    engines = SlowEngine(0.005), SlowEngine(0.005)
    forming = FormingPolicy(max_jobs=16)
    async with AsyncClient(redis_url) as client:
        async with (
            PlainService(redis_url, MODEL, engines[0], policy=policy(forming=forming), consumer="first") as first,
            PlainService(redis_url, MODEL, engines[1], policy=policy(forming=forming), consumer="second") as second,
        ):
            outputs = [result.unwrap() async for result in client.map(jobs(1000))]
        await assert_all_accounted_for(client, 1000)

    assert outputs == list(range(1000))
    assert first.router.counts.read + second.router.counts.read == 1000
    assert min(first.router.counts.answered, second.router.counts.answered) > 150
    assert sorted(engines[0].ran + engines[1].ran) == list(range(1000))


async def test_one_of_two_routers_is_stopped(redis_url: str) -> None:
    """The other one goes on with what is left."""
    async with AsyncClient(redis_url) as client, PlainService(redis_url, MODEL, EchoEngine(), consumer="stays"):
        results = client.map(jobs(800), in_flight=100)
        async with PlainService(redis_url, MODEL, EchoEngine(), consumer="goes"):
            outputs = [(await anext(results)).unwrap() for _ in range(300)]
        outputs += [result.unwrap() async for result in results]

        assert outputs == list(range(800))
        await assert_all_accounted_for(client, 800)


async def test_two_routers_and_a_crash(own_server: EmbeddedServer) -> None:
    """Each adopts what is its own, and leaves alone what is the other's."""
    async with AsyncClient(own_server.url, settings=PATIENT) as client:
        engines = [RecordingEngine() for _ in range(2)]
        async with (
            PlainService(own_server.url, MODEL, engines[0], policy=policy(), consumer="first"),
            PlainService(own_server.url, MODEL, engines[1], policy=policy(), consumer="second"),
        ):
            outputs = []
            async for result in client.map(jobs(1000), in_flight=100):
                outputs.append(result.unwrap())
                if len(outputs) in (300, 600):
                    own_server.kill()
                    own_server.start()
            assert outputs == list(range(1000))
            await assert_all_accounted_for(client, 1000)


# -- sabotage ---------------------------------------------------------------------------------------------------------


async def race_of_two_answers(url: str) -> scripts.Audit:
    """Twenty jobs, each answered by two replicas of which none knows of the other."""
    async with AsyncClient(url) as client, HandService(url, MODEL) as service:
        await client.submit_many(jobs(20))
        taken = await service.take()
        await service.answer(*taken, output="first")
        await service.answer(*taken, output="second")
        audit = await client.audit(MODEL)
        await execute(client._redis, "FLUSHALL")
        await register(service.redis, MODEL, Limits())
    return audit


async def test_the_fence_keeps_answers_from_being_doubled(redis_url: str) -> None:
    """The second answer changes nothing."""
    audit = await race_of_two_answers(redis_url)

    assert (audit.ok, audit.doubled) == (20, 0)


async def test_without_the_fence_the_audit_shows_every_doubled_answer(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: a COMPLETE that does not look whether it was the first."""
    sabotage(monkeypatch, scripts.COMPLETE, "if codes[n] == 1 then", "codes[n] = 1 if true then")

    audit = await race_of_two_answers(redis_url)

    assert audit.doubled == 20


async def lost_reply_of_submit(url: str) -> tuple[int, int]:
    """Five jobs whose SUBMIT lost its reply: how many were accepted, and how many were called duplicates."""
    await preload(url)
    async with HandService(url, MODEL), Proxy(url) as proxy, AsyncClient(proxy.url) as client:
        proxy.drop_reply_to(scripts.SUBMIT.sha)
        receipts = await client.submit_many(jobs(5))
        assert proxy.dropped == 1
    return sum(not receipt.duplicate for receipt in receipts), sum(receipt.duplicate for receipt in receipts)


async def test_the_token_tells_a_replay_from_a_duplicate(redis_url: str) -> None:
    """The retry of a lost reply is told "accepted"."""
    assert await lost_reply_of_submit(redis_url) == (5, 0)


async def test_without_the_token_a_replay_looks_like_a_duplicate(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: a SUBMIT that does not compare tokens."""
    sabotage(monkeypatch, scripts.SUBMIT, "== token and 0 or 1", "== 'none' and 0 or 1")

    assert await lost_reply_of_submit(redis_url) == (0, 5)


def sabotage(monkeypatch: pytest.MonkeyPatch, script: scripts.Script, right: str, wrong: str) -> None:
    """Replace a part of a script that must occur in it exactly once."""
    assert script.text.count(right) == 1, "the script was rewritten: rewrite the sabotage, too"
    broken = script.text.replace(right, wrong)
    monkeypatch.setattr(script, "text", broken)
    monkeypatch.setattr(script, "sha", hashlib.sha1(broken.encode(), usedforsecurity=False).hexdigest())
