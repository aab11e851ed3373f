"""The client's pure parts, each by itself: who waits for what, names, msgpack, the server's clock, tasks."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from typing import Any

import msgpack
import pytest
import redis.asyncio
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.codec import pack, unpack
from headrace.errors import DecodeError, RedisUnavailableError
from headrace.ids import is_name, new_inbox, new_job_id, new_token
from headrace.inboxes.demultiplexer import Demultiplexer
from headrace.messages import InboxEntry
from headrace.server.clock import ServerClock
from headrace.server.connection import commands, execute
from headrace.tasks import cancellation_kept, end_task, to_its_end
from support.waiting import eventually

# -- who waits for which answer ---------------------------------------------------------------------------------------


def entry(job_id: str) -> InboxEntry:
    return InboxEntry("box", f"{job_id}-0", job_id, "ok", 1, b"")


def test_an_answer_goes_to_everybody_who_waits_for_it() -> None:
    """And to nobody twice."""
    demultiplexer, got = Demultiplexer(), list[Any]()
    assert demultiplexer.open("a")
    assert demultiplexer.wait("a", got.append)
    assert demultiplexer.wait("a", got.append)
    demultiplexer.feed(entry("a"))
    demultiplexer.feed(entry("a"))

    assert got == [entry("a")] * 2


def test_a_job_that_was_not_opened_is_not_waited_for_here() -> None:
    """Its answer comes from its record."""
    assert not Demultiplexer().wait("a", print)


def test_opening_twice_is_told() -> None:
    """Whoever opened second must not close what the first one opened."""
    demultiplexer = Demultiplexer()
    assert [demultiplexer.open("a"), demultiplexer.open("a")] == [True, False]


def test_a_refused_job_gives_its_waiters_back() -> None:
    """They are served elsewhere."""
    demultiplexer, got = Demultiplexer(), list[Any]()
    deliver = got.append
    demultiplexer.open("a")
    demultiplexer.wait("a", deliver)

    assert demultiplexer.withdraw("a") == [deliver]
    assert demultiplexer.withdraw("a") == []
    assert demultiplexer.pending == 0


def test_who_stops_waiting_leaves_the_answer_to_the_next() -> None:
    """The place of an answer that came for nobody is remembered, and taken once."""
    demultiplexer = Demultiplexer()
    demultiplexer.open("a")
    demultiplexer.wait("a", print)
    demultiplexer.stop_waiting("a", print)
    demultiplexer.feed(entry("a"))

    assert [demultiplexer.take_arrived("a"), demultiplexer.take_arrived("a")] == ["a-0", None]


def test_a_reader_that_ends_tells_everybody() -> None:
    """An error reaches all who wait, for whatever they wait."""
    demultiplexer, got = Demultiplexer(), list[Any]()
    for job_id in "ab":
        demultiplexer.open(job_id)
        demultiplexer.wait(job_id, got.append)
    error = RedisUnavailableError("gone")
    demultiplexer.fail(error)

    assert got == [error, error]
    assert demultiplexer.pending == 0


# -- names --------------------------------------------------------------------------------------------------------


def test_a_job_id_is_a_uuid_of_version_7() -> None:
    """RFC 9562: the version and variant bits are where they belong."""
    for _ in range(100):
        made = uuid.UUID(new_job_id())
        assert made.variant == uuid.RFC_4122
        assert made.version == 7
        assert abs((made.int >> 80) / 1000 - time.time()) < 5


def test_job_ids_sort_by_time() -> None:
    """To the millisecond; within one the order is random."""
    ids = []
    for _ in range(5):
        ids.append(new_job_id())
        deadline = time.time_ns() // 1_000_000 + 2
        while time.time_ns() // 1_000_000 < deadline:
            pass

    assert ids == sorted(ids)


def test_random_names_do_not_repeat_and_are_names() -> None:
    """Ids, inboxes and tokens stand in keys and envelopes."""
    for make in (new_job_id, new_inbox, new_token):
        made = {make() for _ in range(2000)}
        assert len(made) == 2000
        assert all(is_name(name) for name in made)


@given(st.text(max_size=70))
@example("a\n")
@example("")
@example("x" * 65)
@example("٣")
def test_what_is_a_name(text: str) -> None:
    """Up to 64 of the letters, digits and marks that need no quoting anywhere; nothing of another alphabet."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
    assert is_name(text) == (0 < len(text) <= 64 and set(text) <= allowed)


# -- msgpack ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=64))
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x91" * 5000 + b"\xc0")
@example(b"\xd9\x02\xff\xfe")
@example(b"\x00\x00")
@example(b"\x81\x90\x00")
@example(b"\xc7\x01\x05x")
def test_any_bytes_are_a_value_or_one_named_error(data: bytes) -> None:
    """Lengths that lie, nesting, extension types, keys that cannot be: `DecodeError`, at once and in little memory."""
    try:
        value = unpack(data)
    except DecodeError:
        return
    assert pack(unpack(pack(value))) == pack(value)


def test_extension_types_are_refused() -> None:
    """Nothing on the wire is revived into an object."""
    with pytest.raises(DecodeError, match="extension type 5"):
        unpack(msgpack.packb(msgpack.ExtType(5, b"x")))


def test_a_timestamp_is_a_number() -> None:
    """The one extension that the library does not let us refuse does not become an object either."""
    assert unpack(msgpack.packb([msgpack.Timestamp(1, 5)])) == [1_000_000_005]


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, "\ud800", 1j])
def test_what_cannot_be_packed(value: Any) -> None:
    """One named error on the way in, too."""
    with pytest.raises(DecodeError, match="cannot be packed"):
        pack(value)


# -- the server's clock ---------------------------------------------------------------------------------------------


async def test_the_server_s_clock_is_known_after_one_look(redis_url: str) -> None:
    """To within half a round trip."""
    client = commands(redis_url)
    clock = ServerClock()
    clock._offset_s += 3600  # this machine's clock goes wrong
    await clock.look(client)

    seconds, microseconds = await client.time()
    assert abs(clock.now_s() - (seconds + microseconds / 1e6)) < 0.5
    assert abs(clock.now_ms() - clock.now_s() * 1000) < 500
    await client.aclose()


async def test_an_unreachable_server_leaves_the_clock_as_it_was(tmp_path: Any) -> None:
    """Until it answers, the last look counts, or this machine's own time."""
    client = commands(f"unix://{tmp_path}/nobody.sock", retries=0)
    clock = ServerClock()
    with pytest.raises(RedisUnavailableError):
        await clock.look(client)
    await client.aclose()

    assert abs(clock.now_s() - time.time()) < 1


# -- tasks --------------------------------------------------------------------------------------------------------


async def test_a_task_that_swallows_its_cancellation_is_ended_all_the_same() -> None:
    """It is asked again until it is over."""
    asked = 0

    async def stubborn() -> None:
        nonlocal asked
        while asked < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asked += 1

    task = asyncio.create_task(stubborn())
    await eventually(lambda: True)
    await asyncio.sleep(0)
    await end_task(task)

    assert task.done()
    assert asked == 3


@pytest.mark.parametrize("then", [None, LookupError("something else")])
async def test_a_cancellation_that_was_lost_is_raised_after_all(then: Exception | None) -> None:
    """Whatever came of what lost it; one that came before is not raised again."""

    async def losing() -> None:
        with cancellation_kept():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            if then is not None:
                raise then

    async def lost_before() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        with cancellation_kept():
            return "goes on"

    tasks = [asyncio.create_task(work) for work in (losing(), lost_before())]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert tasks[0].cancelled()
    assert tasks[1].result() == "goes on"


async def test_what_is_to_be_done_whole_outlasts_its_cancellations() -> None:
    """Its error counts for less than that its task was cancelled; undisturbed, its answer and its error are given."""
    done = []

    async def work(step: int) -> int:
        await asyncio.sleep(0.01)
        done.append(step)
        return 1 // step

    task = asyncio.create_task(to_its_end(work(0)))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert await to_its_end(work(1)) == 1
    with pytest.raises(ZeroDivisionError):
        await to_its_end(work(0))
    assert done == [0, 1, 0]


async def test_a_client_that_is_closed_by_a_cancelled_task_leaves_nothing_open(redis_url: str) -> None:
    """At whatever step of its closing that was: `end_task` asks again and again."""
    for steps in range(1, 9):
        client = commands(redis_url)
        await asyncio.gather(*(execute(client, "PING") for _ in range(3)))
        connections = [*client.connection_pool._available_connections]
        closing = asyncio.create_task(client.aclose())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})

        assert len(connections) == 3
        assert not any(connection.is_connected for connection in connections), steps


async def test_clients_lose_no_cancellation(redis_url: str) -> None:
    """A task that sends one command after the other ends when it is first asked to, at whatever moment."""
    client = commands(redis_url)

    async def send_for_ever() -> None:
        while True:
            await execute(client, "PING")

    for n in range(60):
        task = asyncio.create_task(send_for_ever())
        await asyncio.sleep(n / 20_000)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()
    await client.aclose()


async def test_a_task_that_ends_in_an_error_is_ended_quietly() -> None:
    """Its error was looked at: asyncio has nothing to complain of."""

    async def failing() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise LookupError("on the way out")

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await end_task(task)

    assert isinstance(task.exception(), LookupError)


async def test_a_cancelled_command_leaves_its_connection_usable(redis_url: str) -> None:
    """The reply to a command that nobody waits for any more is never taken for the next one's."""
    client: redis.asyncio.Redis = commands(redis_url)
    await client.set("key", "value", px=60_000)
    for _ in range(50):
        task = asyncio.ensure_future(client.get("key"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert await client.echo("mine") == b"mine"
    await client.aclose()
