"""The sign of life of a consumer, and who may reap."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import redis as sync_redis

from headrace.keys import keys_of
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.router.lease import Lease, LeaseState
from support.waiting import eventually

TTL_S = 3.0


def test_a_lease_is_held_for_its_time() -> None:
    state = LeaseState(TTL_S)
    assert not state.held(0.0)
    state.beaten(10.0, stood=False)
    assert state.held(12.9)
    assert not state.held(13.0)


def test_who_has_just_come_must_not_reap() -> None:
    """Others may live, and not have had the time to say so."""
    state = LeaseState(TTL_S)
    for beat in range(4):
        state.beaten(float(beat), stood=beat > 0)
        assert state.may_reap(float(beat)) == (beat >= 3)


def test_on_an_old_server_even_a_newcomer_may_reap() -> None:
    state = LeaseState(TTL_S)
    state.beaten(0.0, stood=False, old_server=True)
    assert state.may_reap(0.0)


def test_after_a_lapse_nobody_reaps_for_a_whole_lease() -> None:
    """The server was away or stood still, and with our key those of the living went, too."""
    state = LeaseState(TTL_S)
    state.beaten(0.0, stood=False, old_server=True)
    state.beaten(10.0, stood=False, old_server=True)
    assert state.lapses == 1
    for now_s in (11.0, 12.0, 12.9):
        assert not state.may_reap(now_s)
        state.beaten(now_s, stood=True)
    assert state.may_reap(13.0)


def test_after_an_outage_that_his_own_key_outlived_nobody_reaps_either() -> None:
    """The key of another, who had beaten a second before, is gone, and he had no chance to set it again."""
    state = LeaseState(TTL_S)
    state.beaten(0.0, stood=False, old_server=True)
    assert not state.may_reap(2.4)
    state.beaten(2.5, stood=True)
    assert state.lapses == 0
    for now_s in (3.5, 4.5, 5.4):
        assert not state.may_reap(now_s)
        state.beaten(now_s, stood=True)
    assert state.may_reap(5.5)


def test_who_does_not_hold_his_own_does_not_reap() -> None:
    state = LeaseState(TTL_S)
    state.beaten(0.0, stood=False, old_server=True)
    assert not state.may_reap(3.1)


def ttl_ms(url: str, consumer: str = "c", model: str = "m") -> int:
    with sync_redis.Redis.from_url(url) as client:
        return int(client.pttl(keys_of(model).heartbeat(consumer)))


async def test_the_key_stands_while_the_consumer_lives(redis_url: str) -> None:
    lease = Lease(redis_url, ["m", "n"], consumer="c", ttl_s=0.6, beat_s=0.1)
    lease.start()
    await lease.wait_held()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        assert ttl_ms(redis_url) > 0
        assert ttl_ms(redis_url, model="n") > 0
        await asyncio.sleep(0.05)
    assert lease.lapses == 0
    await lease.stop()
    await eventually(lambda: ttl_ms(redis_url) == -2)


async def test_a_busy_event_loop_does_not_stop_the_heart(redis_url: str) -> None:
    """Model code, or a large message, may block the loop for as long as it likes."""
    lease = Lease(redis_url, ["m"], consumer="c", ttl_s=0.6, beat_s=0.1)
    lease.start()
    await lease.wait_held()
    time.sleep(1.2)  # noqa: ASYNC251 - this is the point
    assert lease.held
    assert lease.lapses == 0
    await lease.stop()


async def test_an_outage_is_a_lapse_and_is_got_over(own_server: EmbeddedServer) -> None:
    lease = Lease(own_server.url, ["m"], consumer="c", ttl_s=0.5, beat_s=0.1)
    lease.start()
    await lease.wait_held()
    own_server.kill()
    await eventually(lambda: not lease.held)
    own_server.start()
    await lease.wait_held()
    assert lease.lapses == 1
    assert not lease.may_reap
    await eventually(lambda: lease.may_reap)
    await lease.stop()


async def test_it_leaves_no_thread(redis_url: str) -> None:
    lease = Lease(redis_url, ["m"], consumer="c")
    lease.start()
    assert "headrace-lease" in {thread.name for thread in threading.enumerate()}
    await lease.stop()
    assert "headrace-lease" not in {thread.name for thread in threading.enumerate()}


async def test_stopping_what_was_never_started(redis_url: str) -> None:
    await Lease(redis_url, ["m"], consumer="c").stop()


@pytest.mark.parametrize("url", ["redis://localhost:1", "unix:///nowhere"])
async def test_it_waits_for_redis(url: str) -> None:
    lease = Lease(url, ["m"], consumer="c")
    lease.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lease.wait_held(), 0.2)
    await lease.stop()
