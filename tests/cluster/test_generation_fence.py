"""Two generations of the application on one Redis: the newer reads as soon as it can, the older until then."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import pytest

from headrace import AsyncClient, Job, JobState, scripts
from headrace.keys import keys_of
from headrace.models.registry import Limits
from headrace.scripts import Leader
from headrace.server.connection import commands, execute
from headrace_cluster.router.generation import GenerationFence
from headrace_workers.engines.base import Engine
from support.bad_days import GatedEngine, RecordingEngine
from support.routing import MODEL, assert_all_accounted_for, jobs, outputs_of, policy
from support.service import PlainService
from support.waiting import eventually

POOL = "replica-0"  # what `PlainService` calls its first replica; a name without a slash is its pool's, too


class Generation(PlainService):
    """One generation: a router, and a pool that has its replica from the beginning or gets it later."""

    def __init__(
        self, url: str, number: int, engine: Engine, *, ready: bool = True, drain_s: float = 30.0, **fields: Any
    ) -> None:
        fence = GenerationFence(number, needs={POOL}, drain_s=drain_s)
        consumer = fields.pop("consumer", f"router-{number}")
        super().__init__(url, MODEL, engine, policy=policy(**fields), consumer=consumer, fence=fence)
        if not ready:
            self.pool.change({})

    async def __aenter__(self) -> Self:
        self.lease.start()
        self._task = asyncio.create_task(self.router.run())
        await eventually(lambda: self.router._fault is not None)  # it has begun
        return self

    @property
    def reads(self) -> bool:
        return self.router.fence.leads

    @property
    def gave_way(self) -> bool:
        """Nor does a read of its own wait in Redis still."""
        return not self.reads and self.router._reader.paused

    async def crash(self) -> None:
        """As kill -9: nothing is given back, and the heart stands still."""
        self.router._give_back = _nothing  # type: ignore[method-assign]
        await self.lease.stop()
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        self._task = asyncio.create_task(_nothing())


async def _nothing() -> None:
    return


# -- as a tutorial --------------------------------------------------------------------------------------------------


async def test_the_newer_takes_over_when_it_has_a_replica(redis_url: str) -> None:
    """Until then the older goes on, and nobody notices."""
    old, new = RecordingEngine(), RecordingEngine()
    async with Generation(redis_url, 1, old) as first, AsyncClient(redis_url) as client:
        await eventually(lambda: first.reads)
        async with Generation(redis_url, 2, new, ready=False) as second:
            assert await outputs_of(client, jobs(20)) == list(range(20))
            assert (len(old.ran), len(new.ran), second.reads) == (20, 0, False)
            second.pool.change(second.replicas)
            await eventually(lambda: second.reads and first.gave_way)
            more = [Job(model=MODEL, input=n) for n in range(20)]
            assert await outputs_of(client, more) == list(range(20))
            assert (len(old.ran), len(new.ran)) == (20, 20)
            await assert_all_accounted_for(client, 40)


async def test_the_older_finishes_what_it_holds(redis_url: str) -> None:
    """It has read it, so it runs it; what it has not read is the other's."""
    old, new = GatedEngine(), RecordingEngine()
    async with Generation(redis_url, 1, old) as first, AsyncClient(redis_url) as client:
        receipt = await client.submit(Job(model=MODEL, input="held"))
        await eventually(lambda: old.prepared)
        async with Generation(redis_url, 2, new) as second:
            await eventually(lambda: second.reads and first.gave_way)
            assert await outputs_of(client, jobs(5)) == list(range(5))
            old.open()
            assert (await client.result(receipt, timeout_s=10)).unwrap() == "held"
            assert (old.ran, new.ran) == (["held"], list(range(5)))
            await assert_all_accounted_for(client, 6)


async def test_what_it_cannot_finish_in_time_it_hands_back(redis_url: str) -> None:
    """The newer runs it, uncounted; the answer that comes late after all is dropped."""
    old, new = GatedEngine(), RecordingEngine()
    async with Generation(redis_url, 1, old, drain_s=0.0) as first, AsyncClient(redis_url) as client:
        receipts = await client.submit_many([Job(model=MODEL, input=n) for n in range(9)])
        await eventually(lambda: old.prepared)
        async with Generation(redis_url, 2, new) as second:
            results = [await client.result(receipt, timeout_s=20) for receipt in receipts]
            assert [result.unwrap() for result in results] == list(range(9))
            assert {result.attempt for result in results} == {1}
            assert sorted(new.ran) == list(range(9))
            assert second.reads
            old.open()
            await eventually(lambda: not len(first.router.held))
            await assert_all_accounted_for(client, 9)


async def test_routers_of_one_generation_share_the_lanes(redis_url: str) -> None:
    """Both read."""
    async with (
        Generation(redis_url, 1, RecordingEngine(), consumer="a") as one,
        Generation(redis_url, 1, RecordingEngine(), consumer="b") as two,
        AsyncClient(redis_url) as client,
    ):
        await eventually(lambda: one.reads and two.reads)
        assert await outputs_of(client, jobs(30)) == list(range(30))
        await assert_all_accounted_for(client, 30)


async def test_going_back_is_going_on(redis_url: str) -> None:
    """An older configuration comes back as a newer generation; one with a smaller number does not read."""
    async with Generation(redis_url, 5, RecordingEngine()) as now:
        await eventually(lambda: now.reads)
        async with Generation(redis_url, 4, RecordingEngine()) as late, AsyncClient(redis_url) as client:
            assert await outputs_of(client, jobs(3)) == [0, 1, 2]
            assert (now.reads, late.reads) == (True, False)
        async with Generation(redis_url, 6, RecordingEngine()) as back:
            await eventually(lambda: back.reads and not now.reads)


# -- when the newer fails --------------------------------------------------------------------------------------------


async def test_the_older_takes_over_again_when_the_newer_dies(redis_url: str) -> None:
    """As soon as its last heartbeat has lapsed; what it held is taken over as any dead router's."""
    new = GatedEngine()
    async with Generation(redis_url, 1, RecordingEngine()) as first, AsyncClient(redis_url) as client:
        async with Generation(redis_url, 2, new) as second:
            await eventually(lambda: second.reads and first.gave_way)
            receipt = await client.submit(Job(model=MODEL, input="in its hands"))
            await eventually(lambda: new.prepared)
            await second.crash()
            await eventually(lambda: first.reads)
            assert (await client.result(receipt, timeout_s=10)).unwrap() == "in its hands"
            new.open()
        await assert_all_accounted_for(client, 1)


async def test_the_older_takes_over_again_when_the_newer_has_no_replica_any_more(redis_url: str) -> None:
    """And gives way once more when there is one."""
    async with (
        Generation(redis_url, 1, RecordingEngine()) as first,
        Generation(redis_url, 2, RecordingEngine()) as second,
    ):
        await eventually(lambda: second.reads and first.gave_way)
        second.pool.change({})
        await eventually(lambda: first.reads and not second.reads)
        second.pool.change(second.replicas)
        await eventually(lambda: second.reads and first.gave_way)


async def test_another_router_of_the_generation_goes_first(redis_url: str) -> None:
    """Where one of two new routers dies, the other goes on, and the older stays where it is."""
    async with (
        Generation(redis_url, 1, RecordingEngine()) as old,
        Generation(redis_url, 2, RecordingEngine(), consumer="a") as one,
        Generation(redis_url, 2, RecordingEngine(), consumer="b") as two,
    ):
        await eventually(lambda: one.reads and two.reads and not old.reads)
        redis = commands(redis_url)
        by = await execute(redis, "HGET", keys_of(MODEL).generation, "by")
        speaker, other = (one, two) if by == b"a" else (two, one)
        await speaker.crash()
        heir = other.router._lease.consumer.encode()
        await eventually(lambda: execute(redis, "HGET", keys_of(MODEL).generation, "by"))

        async def inherited() -> bool:
            return bool(await execute(redis, "HGET", keys_of(MODEL).generation, "by") == heir)

        await eventually(inherited)
        await redis.aclose()
        assert (other.reads, old.reads) == (True, False)


async def test_a_generation_that_does_not_read_sets_no_limits(redis_url: str) -> None:
    """An old router that starts again must not undo what the newer said."""
    async with Generation(redis_url, 2, RecordingEngine(), limits=Limits(lane_capacity=2)) as new:
        await eventually(lambda: new.reads)
        async with Generation(redis_url, 1, RecordingEngine(), limits=Limits(lane_capacity=1)) as old:
            await eventually(lambda: old.lease.held and old.router._process._rounds[""]._number > 2)
            redis = commands(redis_url)
            assert await execute(redis, "HGET", keys_of(MODEL).meta, "lane_capacity") == b"2"
            await redis.aclose()


async def test_a_job_that_waits_is_nobodys(redis_url: str) -> None:
    """A first generation that has no replica yet leads, since there is no other, and leaves jobs where they lie."""
    async with Generation(redis_url, 1, RecordingEngine(), ready=False) as only, AsyncClient(redis_url) as client:
        await eventually(lambda: only.reads)
        receipt = await client.submit(Job(model=MODEL, input=1))
        assert (await client.status(receipt)).state is JobState.WAITING
        only.pool.change(only.replicas)
        assert (await client.result(receipt, timeout_s=10)).unwrap() == 1


# -- the script -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asks", "leads"),
    [
        ([(1, True), (2, False)], 1),  # the newer is not able
        ([(1, True), (2, True)], 2),
        ([(1, False), (2, False)], 1),  # the first leads, able or not
        ([(2, True), (1, True)], 1),  # nobody of 2 has a heartbeat, and that is certain
        ([(2, True), (1, False)], 2),  # but 1 must be able to
        ([(1_800_000_000_000, True), (1_700_000_000_000, False)], 1_800_000_000_000),
    ],
)
async def test_who_leads(redis_url: str, asks: list[tuple[int, bool]], leads: int) -> None:
    """By number, ability, and signs of life."""
    client = commands(redis_url)
    try:
        for number, able in asks:
            said = await scripts.lead(client, MODEL, number, f"r{number}", able=able, may_succeed=True)
        assert said.generation == leads
        await execute(client, "DEL", keys_of(MODEL).generation)
    finally:
        await client.aclose()


async def test_an_older_one_waits_for_certainty(redis_url: str) -> None:
    """After a restart of Redis all heartbeats are gone, and those of the living must have the time to come back."""
    client = commands(redis_url)
    try:
        await scripts.lead(client, MODEL, 2, "new", able=True, may_succeed=True)
        assert await scripts.lead(client, MODEL, 1, "old", able=True, may_succeed=False) == (2, False)
        await execute(client, "SET", keys_of(MODEL).heartbeat("new"), "1", "PX", 3000)
        assert await scripts.lead(client, MODEL, 1, "old", able=True, may_succeed=True) == (2, True)
        await execute(client, "DEL", keys_of(MODEL).heartbeat("new"), keys_of(MODEL).generation)
    finally:
        await client.aclose()


# -- the fence ------------------------------------------------------------------------------------------------------


def test_it_is_able_when_each_needed_pool_has_a_replica() -> None:
    """Of other pools, which may scale from zero, none is asked."""
    fence = GenerationFence(1, needs={"cpu", "gpu"})
    assert not fence.able
    fence.replicas_changed({"cpu/a", "cpu/b", "spare/c"})
    assert not fence.able
    fence.replicas_changed({"cpu/a", "gpu/d"})
    assert fence.able
    fence.retire()
    assert not fence.able
    assert GenerationFence(1).able


def test_it_hands_back_once_after_each_loss() -> None:
    """Not before its time, and not if it leads again."""
    fence = GenerationFence(1, drain_s=10.0)
    assert not fence.hand_back_due(100.0)
    assert fence.told(Leader(1, True), 100.0)
    assert not fence.told(Leader(1, True), 101.0)
    assert fence.told(Leader(2, True), 102.0)
    assert not fence.hand_back_due(111.9)
    assert fence.hand_back_due(112.0)
    assert not fence.hand_back_due(113.0)
    assert fence.told(Leader(1, True), 114.0)
    assert fence.told(Leader(3, True), 115.0)
    assert fence.told(Leader(1, True), 116.0)
    assert not fence.hand_back_due(200.0)


def test_it_succeeds_a_newer_one_that_is_silent() -> None:
    """For a while, without a sign of life between."""
    fence = GenerationFence(1)
    assert not fence.may_succeed(100.0)
    fence.told(Leader(2, False), 100.0)
    assert not fence.may_succeed(101.4)
    assert fence.may_succeed(101.5)
    fence.told(Leader(2, True), 102.0)
    assert not fence.may_succeed(110.0)
    fence.told(Leader(2, False), 110.0)
    fence.told(Leader(2, False), 50.0)  # the server's clock was set back
    assert not fence.may_succeed(51.0)
    assert fence.may_succeed(52.0)
