"""When connections break, replies are lost and Redis goes away: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from headrace import AsyncClient, ClientSettings, Job, RedisUnavailableError, SubmitOutcome, scripts
from headrace.server.backoff import Backoff
from headrace.server.connection import execute_together
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService
from support.proxy import Proxy
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")
QUICK = ClientSettings(command_timeout_s=0.3, retries=3)


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}") for n in range(count)]


async def reading(service: HandService, blocked: int = 1) -> bool:
    """Whether so many readers wait at the server."""
    return int((await service.redis.info("clients"))["blocked_clients"]) >= blocked


# -- connections ----------------------------------------------------------------------------------------------------


async def test_the_reader_survives_being_killed(
    client: AsyncClient, service: HandService, caplog: pytest.LogCaptureFixture
) -> None:
    """CLIENT KILL on every connection, again and again: each answer arrives, once."""
    waiters = [asyncio.create_task(client.result(receipt)) for receipt in await client.submit_many(jobs(30))]
    for entry in await service.take():
        await service.redis.client_kill_filter(_type="normal", skipme=True)
        await service.answer(entry, output=entry.envelope.job_id)

    results = await asyncio.wait_for(asyncio.gather(*waiters), 20)

    assert [result.unwrap() for result in results] == [f"job-{n}" for n in range(30)]
    assert any("trying again" in record.message for record in caplog.records)


async def test_a_map_goes_on_through_broken_connections(redis_url: str, service: HandService) -> None:
    """Every connection of the client is cut every few milliseconds; the map gives each result once, in order."""
    service.keep_answering()
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url, settings=ClientSettings(retries=20)) as client:

        async def cutting() -> None:
            while True:
                await asyncio.sleep(0.02)
                proxy.cut()

        trouble = asyncio.create_task(cutting())
        outputs = [result.unwrap() async for result in client.map(jobs(400), in_flight=20)]
        trouble.cancel()

    assert outputs == list(range(400))
    assert proxy.accepted > 4
    audit = await scripts.audit(service.redis, MODEL)
    assert (audit.submitted, audit.lost, audit.doubled) == (400, 0, 0)


# -- replies that are lost -------------------------------------------------------------------------------------------


async def test_a_submit_whose_reply_is_lost_is_submitted_once(redis_url: str, service: HandService) -> None:
    """The server executed it; the retry carries the same token and is told "accepted", not "duplicate"."""
    await scripts.load(service.redis)
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url) as client:
        proxy.drop_reply_to(scripts.SUBMIT.sha)
        receipts = await client.submit_many(jobs(5))

        assert proxy.dropped == 1
        assert [receipt.outcome for receipt in receipts] == [SubmitOutcome.ACCEPTED] * 5
        assert len(await service.take()) == 5


async def test_a_complete_whose_reply_is_lost_answers_once(
    redis_url: str, service: HandService, client: AsyncClient
) -> None:
    """The retry finds the jobs ended and changes nothing; the consumer sees one answer each."""
    await scripts.load(service.redis)
    receipts = await client.submit_many(jobs(3))
    taken = await service.take()
    async with Proxy(redis_url) as proxy, HandService(proxy.url) as cut_off:
        proxy.drop_reply_to(scripts.COMPLETE.sha)
        ended = await cut_off.answer(*taken, output="once")

    assert proxy.dropped == 1
    assert ended == [False] * 3  # to the retry they look as if somebody else had ended them
    assert [(await client.result(receipt, timeout_s=5)).unwrap() for receipt in receipts] == ["once"] * 3
    assert len(await service.inbox_entries(client.inbox)) == 3
    audit = await client.audit(MODEL)
    assert (audit.ok, audit.lost, audit.doubled) == (3, 0, 0)


async def test_a_read_whose_reply_is_lost_is_read_again(redis_url: str, service: HandService) -> None:
    """The cursor moves when entries have arrived, not when the server has sent them."""
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url) as client:
        receipts = await client.submit_many(jobs(3))
        await eventually(lambda: reading(service))
        proxy.drop_reply_to("XREAD")
        await service.answer(*await service.take(), output="again")

        results = [await client.result(receipt, timeout_s=5) for receipt in receipts]

    assert [result.unwrap() for result in results] == ["again"] * 3


async def test_a_submit_that_failed_for_good_can_be_repeated(redis_url: str, service: HandService) -> None:
    """After `RedisUnavailableError` nobody knows; submitting again finds out, and runs nothing twice."""
    await scripts.load(service.redis)
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url, settings=ClientSettings(retries=0)) as client:
        proxy.drop_reply_to(scripts.SUBMIT.sha)
        with pytest.raises(RedisUnavailableError):
            await client.submit_many(jobs(2))

        again = await client.submit_many(jobs(3))
        await service.answer(*await service.take(), output="answered")

        assert [receipt.duplicate for receipt in again] == [True, True, False]
        results = [await client.result(receipt, timeout_s=5) for receipt in again]
        assert [result.unwrap() for result in results] == ["answered"] * 3


async def test_commands_that_share_a_round_trip_are_retried_together(redis_url: str, service: HandService) -> None:
    """A connection that breaks under a pipeline costs the pipeline another try."""
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url) as client:
        proxy.drop_reply_to("ECHO")
        replies = await execute_together(client._redis, [("ECHO", str(n)) for n in range(3)])

    assert proxy.dropped == 1
    assert replies == [b"0", b"1", b"2"]


# -- partitions -------------------------------------------------------------------------------------------------------


async def test_a_silent_network_is_noticed(redis_url: str, service: HandService) -> None:
    """Nothing comes and nobody says why: the command times out, is tried again, and then is an error."""
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url, settings=QUICK) as client:
        await client.ping()
        proxy.hold()
        started = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            await client.submit(jobs(1)[0])
        assert time.monotonic() - started < 3  # four attempts of 0.3 s each, connecting included

        proxy.release()
        await client.ping()
        assert (await client.audit(MODEL)).submitted <= 1


async def test_a_slow_network_is_only_slow(redis_url: str, service: HandService) -> None:
    """Delays below the time-out change nothing."""
    service.keep_answering()
    async with Proxy(redis_url) as proxy, AsyncClient(proxy.url) as client:
        proxy.delay_s = 0.02
        assert [result.unwrap() async for result in client.map(jobs(20), in_flight=5)] == list(range(20))


# -- the server -------------------------------------------------------------------------------------------------------


async def test_answers_survive_a_crash_of_the_server(own_server: EmbeddedServer) -> None:
    """Killed and started again on the same data: who waited goes on waiting, and is answered once."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url) as client:
        receipts = await client.submit_many(jobs(20))
        waiters = [asyncio.create_task(client.result(receipt)) for receipt in receipts]
        taken = await service.take()
        await service.answer(*taken[:10], output="before")

        own_server.kill()
        own_server.start()
        await service.answer(*taken[10:], output="after")

        outputs = [result.unwrap() for result in await asyncio.wait_for(asyncio.gather(*waiters), 20)]
        assert outputs == ["before"] * 10 + ["after"] * 10
        audit = await client.audit(MODEL)
        assert (audit.submitted, audit.ok, audit.live, audit.lost, audit.doubled) == (20, 20, 0, 0, 0)


async def test_a_consumer_goes_on_from_its_cursor_after_a_crash(own_server: EmbeddedServer) -> None:
    """The iteration itself waits the outage out, and neither skips nor repeats."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url) as client:
        named = [Job(model=MODEL, input=n, inbox="orders") for n in range(30)]
        await client.submit_many(named)
        taken = await service.take()
        results = client.results("orders", model=MODEL)
        seen = []
        for start in range(0, 30, 10):
            for entry in taken[start : start + 10]:
                await service.answer(entry, output=entry.envelope.job_id)
            seen += [(await anext(results)).unwrap() for _ in range(10)]
            own_server.kill()
            own_server.start()
        await results.aclose()

    assert seen == [job.id for job in named]


async def test_a_consumer_that_begins_in_an_outage_begins_when_it_is_over(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As it would wait out one that comes later: whoever iterates need not tell them apart."""
    async with HandService(own_server.url) as service, AsyncClient(own_server.url, settings=QUICK) as client:
        await client.submit(Job(model=MODEL, input=1, inbox="orders"))
        await service.answer(*await service.take(), output="kept")
    own_server.kill()
    async with AsyncClient(own_server.url, settings=QUICK) as client:
        consuming = asyncio.create_task(anext(client.results("orders", model=MODEL)))
        await eventually(lambda: "trying again" in caplog.text)
        own_server.start()
        assert (await asyncio.wait_for(consuming, 20)).unwrap() == "kept"


async def test_calls_during_an_outage_are_retried_and_then_an_error(own_server: EmbeddedServer) -> None:
    """The error says what was tried; when the server is back the same client works again."""
    async with HandService(own_server.url), AsyncClient(own_server.url, settings=QUICK) as client:
        await client.ping()
        own_server.kill()
        for call in (client.ping(), client.submit(jobs(1)[0]), client.audit(MODEL), client.status("a", model=MODEL)):
            with pytest.raises(RedisUnavailableError):
                await call
        own_server.start()

        assert (await client.submit(jobs(1)[0])).accepted


async def test_a_client_may_be_made_before_the_server_is_there(own_server: EmbeddedServer) -> None:
    """Nothing is asked of Redis until the first call, which names the server it could not reach."""
    own_server.kill()
    async with AsyncClient(own_server.url, settings=QUICK) as client:
        with pytest.raises(RedisUnavailableError, match=r"redis\.sock"):
            await client.ping()
        own_server.start()
        async with HandService(own_server.url) as service:
            service.keep_answering()
            assert (await client.run(jobs(1)[0], timeout_s=5)).ok


async def test_scripts_are_loaded_again_after_a_flush(client: AsyncClient, service: HandService) -> None:
    """SCRIPT FLUSH, or a restart: the server forgets scripts, and whoever calls one brings it again."""
    service.keep_answering()
    for n in range(5):
        await service.redis.script_flush()
        assert (await client.run(Job(model=MODEL, input=n), timeout_s=5)).unwrap() == n
    await service.redis.script_flush()
    assert (await client.audit(MODEL)).ok == 5


# -- patience ---------------------------------------------------------------------------------------------------------


async def test_pauses_between_attempts_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """With jitter: never shorter than the first, never longer than the longest, and short again after a success."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    backoff = Backoff(first_s=0.1, longest_s=1.0)
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    for _ in bounds:
        await backoff.pause()
    backoff.reset()
    await backoff.pause()

    assert all(0.1 <= pause <= bound for pause, bound in zip(pauses, [*bounds, 0.1], strict=True))


async def test_an_outage_is_logged_once_for_each_attempt_and_not_faster(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that cannot reach Redis backs off instead of filling the disk."""
    async with HandService(own_server.url), AsyncClient(own_server.url, settings=QUICK) as client:
        await client.submit(jobs(1)[0])
        own_server.kill()
        with caplog.at_level(logging.WARNING, "headrace.client"):
            await asyncio.sleep(0.5)
        assert 1 <= sum("trying again" in record.message for record in caplog.records) <= 10
        own_server.start()
