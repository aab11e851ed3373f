"""Reading lanes by credit: what is read, when it waits, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from redis.asyncio import Redis

from headrace import AsyncClient, Job
from headrace.errors import RedisError
from headrace.keys import GROUP, keys_of
from headrace.messages import LaneEntry
from headrace.models.registry import Limits, register
from headrace.server.connection import commands, execute
from headrace.tasks import end_task
from headrace_cluster.router.lane_reader import LaneReader
from headrace_cluster.router.lane_reads import LaneReads
from support.waiting import eventually

MODEL = "m"
HIGH, NORMAL, LOW = range(3)
NOTHING = {HIGH: 0, NORMAL: 0, LOW: 0}

pytestmark = pytest.mark.leaves_jobs


class Reader:
    """A lane reader whose credit the test gives."""

    def __init__(self, url: str, consumer: str = "reader", block_ms: int = 50) -> None:
        self.credit = {HIGH: 100, NORMAL: 100, LOW: 100}
        self.taken: list[LaneEntry] = []
        self.on_asked: Callable[[], None] = lambda: None
        self.restored = 0
        self.reads = LaneReads(url, consumer, block_ms=block_ms)
        self.reader = LaneReader(self.reads, MODEL, credit=self._credit, take=self._take, restore=self._restore)
        self._url = url

    async def run(self) -> None:
        """Read until stopped."""
        try:
            await self.reader.run()
        finally:
            await self.reads.close()

    def _credit(self, priority: int, active: int) -> int:
        self.on_asked()
        return self.credit[priority]

    def _take(self, entries: Sequence[LaneEntry]) -> None:
        self.taken += entries

    async def _restore(self) -> None:
        self.restored += 1
        redis = commands(self._url)
        await register(redis, MODEL, Limits())
        await redis.aclose()

    async def has(self, job_id: str) -> None:
        """Wait until the job was read."""
        await eventually(lambda: job_id in self.ids)

    @property
    def ids(self) -> list[str]:
        return [entry.envelope.job_id for entry in self.taken]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    """A producer of a model that is registered, and read by nobody but the test's reader."""
    redis = commands(redis_url)
    await register(redis, MODEL, Limits())
    await redis.aclose()
    async with AsyncClient(redis_url) as client:
        yield client


async def submit(client: AsyncClient, *ids: str, priority: str = "normal") -> None:
    await client.submit_many([Job(model=MODEL, input="x", id=i, inbox="box", priority=priority) for i in ids])


async def test_entries_are_read_as_they_come(client: AsyncClient, redis_url: str) -> None:
    """From all lanes, without polling."""
    reading = Reader(redis_url)
    running = asyncio.create_task(reading.run())
    for priority in ("low", "normal", "high"):
        await submit(client, priority, priority=priority)
        await reading.has(priority)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)

    assert [entry.priority for entry in reading.taken] == [2, 1, 0]


async def test_no_more_is_read_than_there_is_credit_for(client: AsyncClient, redis_url: str) -> None:
    """The rest stays in Redis, undelivered."""
    await submit(client, *[f"job-{n}" for n in range(50)])
    reading = Reader(redis_url)
    reading.credit[NORMAL] = 10
    reading.on_asked = lambda: reading.credit.update({NORMAL: 0} if reading.taken else {})
    running = asyncio.create_task(reading.run())
    await eventually(lambda: len(reading.taken) == 10)
    await asyncio.sleep(0.1)
    pending = await execute(client._redis, "XPENDING", keys_of(MODEL).lanes[1], GROUP)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)

    assert len(reading.taken) == pending[0] == 10


async def test_a_lane_without_credit_is_left_alone(client: AsyncClient, redis_url: str) -> None:
    """The others are read as they come."""
    reading = Reader(redis_url)
    reading.credit[NORMAL] = 0
    running = asyncio.create_task(reading.run())
    await submit(client, "normal")
    await submit(client, "high", priority="high")
    await submit(client, "low", priority="low")
    await eventually(lambda: len(reading.taken) == 2)
    reading.credit[NORMAL] = 10
    reading.reader.credit_changed()
    await eventually(lambda: len(reading.taken) == 3)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)

    assert reading.ids[2] == "normal"


async def test_new_credit_wakes_the_reader(client: AsyncClient, redis_url: str) -> None:
    """Without credit it waits, and asks nothing of Redis."""
    reading = Reader(redis_url)
    reading.credit.update(NOTHING)
    await submit(client, "job")
    running = asyncio.create_task(reading.run())
    await asyncio.sleep(0.1)
    assert reading.taken == []
    reading.credit[NORMAL] = 1
    reading.reader.credit_changed()
    await eventually(lambda: reading.ids == ["job"])
    reading.reader.stop()
    await asyncio.wait_for(running, 5)


async def test_what_a_former_life_was_given_is_adopted(client: AsyncClient, redis_url: str) -> None:
    """All of it, page by page, before anything new; what was answered meanwhile is not."""
    await submit(client, *[f"job-{n}" for n in range(600)])
    lane = keys_of(MODEL).lanes[1]
    await execute(client._redis, "XREADGROUP", "GROUP", GROUP, "reader", "COUNT", 600, "STREAMS", lane, ">")
    await submit(client, "new")
    reading = Reader(redis_url)
    running = asyncio.create_task(reading.run())
    await eventually(lambda: len(reading.taken) == 601)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)

    assert reading.ids == [*(f"job-{n}" for n in range(600)), "new"]


async def test_another_s_entries_are_not_adopted(client: AsyncClient, redis_url: str) -> None:
    """A consumer's history is its own."""
    await submit(client, "theirs")
    lane = keys_of(MODEL).lanes[1]
    await execute(client._redis, "XREADGROUP", "GROUP", GROUP, "other", "COUNT", 600, "STREAMS", lane, ">")
    reading = Reader(redis_url)
    running = asyncio.create_task(reading.run())
    await eventually(lambda: reading.reader.reachable)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)

    assert reading.taken == []


async def test_a_lost_group_is_restored(client: AsyncClient, redis_url: str) -> None:
    """Also while the reader is blocked at the server."""
    reading = Reader(redis_url, block_ms=600)
    running = asyncio.create_task(reading.run())
    await submit(client, "before")
    await eventually(lambda: reading.ids == ["before"])
    for lane in keys_of(MODEL).lanes:
        await execute(client._redis, "DEL", lane)
    await eventually(lambda: reading.restored > 0)
    await submit(client, "after")
    await eventually(lambda: "after" in reading.ids)
    reading.reader.stop()
    await asyncio.wait_for(running, 5)


@pytest.mark.parametrize("credit", [NOTHING, {}, {HIGH: 0}])
async def test_a_stopped_reader_ends_whatever_it_waits_for(
    client: AsyncClient, redis_url: str, credit: dict[int, int]
) -> None:
    """Credit, or news: within one blocking read."""
    reading = Reader(redis_url)
    reading.credit.update(credit)
    running = asyncio.create_task(reading.run())
    await asyncio.sleep(0.06)
    reading.reader.stop()

    await asyncio.wait_for(running, 2)


async def test_a_reader_that_is_stopped_while_it_adopts_ends(client: AsyncClient, redis_url: str) -> None:
    """At any moment of its beginning, though there is no credit to wait for."""
    for steps in range(40):
        reading = Reader(redis_url)
        reading.credit.update(NOTHING)
        running = asyncio.create_task(reading.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.reader.stop()
        await asyncio.wait_for(running, 2)


@asynccontextmanager
async def refused_reader(redis_url: str) -> AsyncIterator[tuple[Reader, Redis]]:
    """A reader that has no right to read, and goes on trying; and a connection of somebody who may give it."""
    redis = commands(redis_url)
    await execute(redis, "ACL", "SETUSER", "router", "on", ">pw", "~*", "+@all", "-xreadgroup")
    reading = Reader(redis_url.replace("unix://", "unix://router:pw@"))
    running = asyncio.create_task(reading.run())
    await asyncio.sleep(0.1)
    assert not running.done()
    assert not reading.reader.reachable
    yield reading, redis
    reading.reader.stop()
    await asyncio.wait_for(running, 5)
    await execute(redis, "ACL", "DELUSER", "router")
    await redis.aclose()


async def test_an_error_of_setup_is_retried_too(client: AsyncClient, redis_url: str) -> None:
    """Rights may be given back: a router does not end for want of them, and says that it is not reachable."""
    async with refused_reader(redis_url) as (reading, redis):
        await execute(redis, "ACL", "SETUSER", "router", "+xreadgroup")
        await submit(client, "job")
        await eventually(lambda: reading.ids == ["job"])


async def test_a_read_that_failed_may_be_carried_out_later(client: AsyncClient, redis_url: str) -> None:
    """By a kernel that had no answer to its packets for a while: nobody hears what it was given, so somebody looks."""
    async with refused_reader(redis_url) as (reading, redis):
        await execute(redis, "ACL", "SETUSER", "router", "+xreadgroup")
        await eventually(lambda: reading.reader.reachable)
        reading.credit.update(NOTHING)
        await eventually(lambda: reading.reader.paused)
        # Low, whose lanes are read before any others: the others' reads have not failed.
        await submit(client, "job", priority="low")
        lanes = keys_of(MODEL).lanes
        streams = [*lanes, *[">"] * len(lanes)]
        assert await execute(redis, "XREADGROUP", "GROUP", GROUP, "reader", "COUNT", 10, "STREAMS", *streams)
        assert reading.ids == []
        await reading.has("job")


async def test_what_take_raises_ends_the_reader(client: AsyncClient, redis_url: str) -> None:
    """A bug is not retried."""
    reading = Reader(redis_url)

    def faulty() -> None:
        raise ZeroDivisionError("a bug")

    reading.on_asked = faulty
    running = asyncio.create_task(reading.run())
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 5)


@pytest.mark.parametrize("step", range(8))
async def test_one_that_leaves_a_common_read_at_any_moment(redis_url: str, step: int) -> None:
    """Before it has begun, too: nobody is left to wait for a read that will never be."""
    redis = commands(redis_url)
    for model in ("leaves", "stays"):
        await register(redis, model, Limits())
    reads = LaneReads(redis_url, "reader", block_ms=100)
    leaving, staying = (asyncio.create_task(reads.wait(keys_of(model).lanes, 1)) for model in ("leaves", "stays"))
    for _ in range(step):
        await asyncio.sleep(0)
    await end_task(leaving)
    with suppress(RedisError):
        assert not await asyncio.wait_for(staying, 5)
    await reads.close()
    await redis.aclose()


async def test_a_fault_in_a_common_read_is_raised_at_all_who_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours, say: it ends them, and does not leave them waiting."""

    async def faulty(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    reads = LaneReads(redis_url, "reader")
    monkeypatch.setattr(reads, "_ask", faulty)
    waiting = [asyncio.create_task(reads.wait(keys_of(model).lanes, 1)) for model in ("a", "b")]
    for waiter in waiting:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(waiter, 5)
    await reads.close()
