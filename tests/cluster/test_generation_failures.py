"""Replicas, routers and servers that die while jobs are being generated: streams go on, with no gap and no repeat."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from headrace import AsyncClient, FailureCode, Job, Status
from headrace.errors import HeadraceError
from headrace.messages import Batch, Fate, JobOutcomes
from headrace.settings import ClientSettings
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_cluster.slots.ledger import SlotLedger
from headrace_workers.generation import batch_call
from headrace_workers.replicas.decoder_replica import DecoderReplica
from support.by_hand import HandService
from support.decoders import FakeDecoder, words_of
from support.mortal import MortalReplica
from support.routing import MODEL, assert_all_accounted_for
from support.service import PlainService
from support.waiting import eventually

PATIENT = ClientSettings(retries=20)


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, "jobs_per_replica": 8, "call_timeout_s": 5.0, **fields})


def job(prompt: str, words: int = 8, **fields: Any) -> Job:
    return Job(model=MODEL, input=prompt, params={"max_tokens": words}, **fields)


async def heard(client: AsyncClient, some: Job) -> str:
    """All that a stream says. A repeat or a gap in it raises."""
    async with client.stream(some, timeout_s=20) as stream:
        text = "".join([piece async for piece in stream])
    assert stream.result is not None
    assert stream.result.text == text
    return text


class MortalService(PlainService):
    """A service whose replicas can be killed; another takes the place of each."""

    def __init__(self, url: str, engines: Sequence[FakeDecoder], **fields: Any) -> None:
        super().__init__(url, MODEL, policy=policy(**fields))
        self._url = url
        self._engines = engines
        self._born = 0
        self.buried: list[MortalReplica] = []
        self.living: dict[str, MortalReplica] = {}
        self.fakes: dict[str, FakeDecoder] = {}
        for engine in engines:
            self._bear(engine)
        self.router.scheduler.slots.update([])

    def _bear(self, engine: FakeDecoder) -> None:
        self.living[f"mortal-{self._born}"] = MortalReplica(MODEL, self._url, engine)
        self.fakes[f"mortal-{self._born}"] = engine
        self._born += 1
        self.pool.change(self.living)  # type: ignore[arg-type]

    async def kill(self, name: str, *, heir: bool = True) -> None:
        """Kill a replica, and have another one born, if there shall be one."""
        dead = self.living.pop(name)
        self.buried.append(dead)
        await dead.kill()
        old = self.fakes[name]
        if heir:
            self._bear(FakeDecoder(step_s=old.step_s, pause_at=old.pause_at))
        else:
            self.pool.change(self.living)  # type: ignore[arg-type]

    def lose(self, name: str) -> None:
        """Lose the way to a replica that lives, and have another one born."""
        lost = self.living.pop(name)
        self.buried.append(lost)
        lost.lose()
        self._bear(FakeDecoder(pause_at=self.fakes[name].pause_at))

    async def close(self) -> None:
        for replica in (*self.buried, *self.living.values()):
            await replica.close()


@asynccontextmanager
async def mortal(url: str, *engines: FakeDecoder, **fields: Any) -> AsyncIterator[MortalService]:
    service = MortalService(url, engines, **fields)
    try:
        async with service:
            yield service
    finally:
        await service.close()


# -- replicas ----------------------------------------------------------------------------------------------------------


async def test_a_stream_goes_on_when_its_replica_is_killed(redis_url: str) -> None:
    """The next replica begins behind the words that were delivered, and nobody is any the wiser."""
    async with mortal(redis_url, FakeDecoder(pause_at=5)) as service, AsyncClient(redis_url) as client:
        listening = asyncio.create_task(heard(client, job("mill", 12)))
        stuck = service.fakes["mortal-0"]
        await eventually(lambda: stuck.running and stuck.running[0].positions == [5])
        await asyncio.sleep(0.1)  # all five are delivered
        await service.kill("mortal-0")
        service.fakes["mortal-1"].go_on()

        assert await listening == words_of("mill", 12)
        assert [delivered for _, delivered in service.fakes["mortal-1"].started] == [5]
        assert len(service.router.scheduler.quarantine) == 0
        await assert_all_accounted_for(client, 1)


async def test_jobs_that_are_interrupted_together_go_on_together(redis_url: str) -> None:
    """None of them is suspected: they run in company again, and not one after the other."""
    engine = FakeDecoder(pause_at=3)
    async with mortal(redis_url, engine) as service, AsyncClient(redis_url) as client:
        listening = [asyncio.create_task(heard(client, job(f"w{n}", 6))) for n in range(8)]
        await eventually(lambda: [g.positions for g in engine.running] == [[3]] * 8)
        await asyncio.sleep(0.1)
        await service.kill("mortal-0")
        service.fakes["mortal-1"].go_on()

        assert await asyncio.gather(*listening) == [words_of(f"w{n}", 6) for n in range(8)]
        assert service.fakes["mortal-1"].most_together > 1
        assert service.router.counts.convicted == 0


async def test_replicas_that_are_killed_at_random_moments(redis_url: str) -> None:
    """Again and again, in the middle of many streams: each says its words, once and in order."""
    chance = random.Random(7)
    engines = [FakeDecoder(step_s=0.002, slots=16) for _ in range(3)]
    fields = {"jobs_per_replica": 16, "lone_failures": 100}
    async with mortal(redis_url, *engines, **fields) as service, AsyncClient(redis_url) as client:
        service.router.scheduler.slots._suspension_s = 0.01  # type: ignore[attr-defined]
        service.router.scheduler.breaker._limit = 1000
        lengths = [chance.randrange(20, 120) for _ in range(120)]
        listening = [asyncio.create_task(heard(client, job(f"w{n}", words))) for n, words in enumerate(lengths)]
        for _ in range(20):
            await asyncio.sleep(chance.uniform(0.0, 0.08))
            await service.kill(chance.choice(list(service.living)))
        texts = await asyncio.gather(*listening)
        await assert_all_accounted_for(client, len(lengths))

    assert texts == [words_of(f"w{n}", words) for n, words in enumerate(lengths)]
    assert len(service.buried) == 20


async def test_a_replica_that_was_only_out_of_reach_writes_nothing_more(redis_url: str) -> None:
    """Another has its job meanwhile: with its next words it is told so, and lets go of it."""
    engine = FakeDecoder(pause_at=3)
    async with mortal(redis_url, engine) as service, AsyncClient(redis_url) as client:
        listening = asyncio.create_task(heard(client, job("mill", 9)))
        await eventually(lambda: engine.running and engine.running[0].positions == [3])
        await asyncio.sleep(0.1)
        service.lose("mortal-0")
        successor = service.fakes["mortal-1"]
        await eventually(lambda: successor.running)
        engine.pause_at = 5
        await eventually(lambda: engine.running == [])
        successor.go_on()

        assert await listening == words_of("mill", 9)
        assert [delivered for _, delivered in successor.started] == [3]
        await assert_all_accounted_for(client, 1)


@pytest.mark.parametrize("late_first", [False, True])
async def test_of_two_calls_with_one_job_the_later_dispatch_has_it(redis_url: str, late_first: bool) -> None:
    """A router that lost the way to a replica sends its job again; what it sent first may come behind that."""
    engine = FakeDecoder(pause_at=2)
    replica = DecoderReplica(MODEL, engine, redis_url=redis_url)
    async with HandService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        receipt = await client.submit(job("mill", 4))
        entries = await service.take()
        messages = [Batch(MODEL, 1_764_000_000_000 + n, entries).to_bytes() for n in (0, 6)]
        order = [1, 0] if late_first else [0, 1]
        replies: dict[int, asyncio.Task[list[int]]] = {}
        for n in order:
            replies[n] = asyncio.create_task(_fates(replica, messages[n]))
            await eventually(lambda: engine.running)
        fates_of_first = await replies[0]
        engine.go_on()

        assert fates_of_first == [Fate.LATE]
        assert await replies[1] == [Fate.ANSWERED]
        assert (await client.result(receipt, timeout_s=5)).text == words_of("mill", 4)
    await replica.close()


async def _fates(replica: DecoderReplica, message: bytes) -> list[int]:
    return [fate async for reply in replica.stream(message) for fate in JobOutcomes.from_bytes(reply).fates]


async def test_the_job_that_makes_every_step_raise_is_found(redis_url: str) -> None:
    """It alone is told of it; the others are answered, though each of its steps took them down with it."""
    async with (
        PlainService(redis_url, MODEL, FakeDecoder(), policy=policy()) as service,
        AsyncClient(redis_url) as client,
    ):
        service.router.scheduler.slots = _quick(service)
        prompts = [f"w{n}" for n in range(5)] + ["raise@2"]
        results = [result async for result in client.map([job(prompt) for prompt in prompts])]
        await assert_all_accounted_for(client, 6)

    guilty = results.pop()
    assert (guilty.status, guilty.failure and guilty.failure.code) == (Status.ERROR, FailureCode.POOL_FAILED)
    assert [result.text for result in results] == [words_of(f"w{n}", 8) for n in range(5)]


def _quick(service: PlainService) -> SlotLedger:
    slots = SlotLedger(per_replica=8, suspension_s=0.02)
    slots.update(service.replicas)
    return slots


async def test_a_replica_whose_step_never_ends_is_killed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing any more, though its event loop lives."""
    monkeypatch.setattr(batch_call, "LIFE_S", 0.1)
    hanging = FakeDecoder()
    async with (
        PlainService(redis_url, MODEL, hanging, policy=policy(call_timeout_s=0.4, lone_failures=1)) as service,
        AsyncClient(redis_url) as client,
    ):
        hung = await client.submit(job("hang@3"))
        for life in range(2):  # what it ran at first is pardoned; another life has another name
            killed = [f"replica-{number}" for number in range(life + 1)]
            await eventually(lambda killed=killed: service.pool.killed == killed)  # type: ignore[misc]
            service.pool.change({f"replica-{life + 1}": service.pool.replicas[f"replica-{life}"]})
        assert (await client.result(hung, timeout_s=5)).status is Status.DEAD
        hanging.go_on()


async def test_a_long_job_is_not_taken_for_one_that_hangs(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as steps come to their ends, its replica says now and then that it lives."""
    monkeypatch.setattr(batch_call, "LIFE_S", 0.1)
    engine = FakeDecoder(pause_at=3)
    async with (
        PlainService(redis_url, MODEL, engine, policy=policy(call_timeout_s=0.4)) as service,
        AsyncClient(redis_url) as client,
    ):
        receipt = await client.submit(job("mill"))
        await asyncio.sleep(1.0)
        assert service.pool.killed == []
        engine.go_on()
        assert (await client.result(receipt, timeout_s=5)).text == words_of("mill", 8)


# -- routers -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_stream_goes_on_when_its_router_dies(redis_url: str) -> None:
    """Another takes the job over, and sends it to the very replica that has it: which begins it anew behind itself."""
    engine = FakeDecoder(pause_at=4)
    dying = PlainService(redis_url, MODEL, engine, policy=policy(), consumer="dying")
    async with AsyncClient(redis_url) as client:
        await dying.__aenter__()
        listening = asyncio.create_task(heard(client, job("mill", 9)))
        await eventually(lambda: engine.running and engine.running[0].positions == [4])
        async with PlainService(redis_url, MODEL, FakeDecoder(), policy=policy(), consumer="lives") as living:
            living.pool.change(dying.replicas)
            await _crash(dying)
            await eventually(lambda: len(engine.started) == 2)
            assert [delivered for _, delivered in engine.started] == [0, 4]
            assert len(engine.running) == 1, "the first of the two has left"
            engine.go_on()
            assert await listening == words_of("mill", 9)
            await assert_all_accounted_for(client, 1)
    for replica in dying.replicas.values():
        await replica.close()


async def _crash(service: PlainService) -> None:
    async def nothing() -> None:
        return

    service.router._give_back = nothing  # type: ignore[method-assign]
    await service.lease.stop()
    assert service._task is not None
    service._task.cancel()
    await asyncio.wait({service._task})


async def test_a_router_that_ends_in_order_leaves_a_stream_to_the_next(redis_url: str) -> None:
    engine = FakeDecoder(pause_at=4)
    first = PlainService(redis_url, MODEL, engine, policy=policy(), consumer="first")
    async with AsyncClient(redis_url) as client:
        await first.__aenter__()
        listening = asyncio.create_task(heard(client, job("mill", 9)))
        await eventually(lambda: engine.running and engine.running[0].positions == [4])
        assert first._task is not None
        first._task.cancel()  # its time to drain is over
        await asyncio.wait({first._task})
        await first.lease.stop()
        other = FakeDecoder()
        async with PlainService(redis_url, MODEL, other, policy=policy(), consumer="second"):
            assert await listening == words_of("mill", 9)
            engine.go_on()
            await assert_all_accounted_for(client, 1)
        await eventually(lambda: engine.running == [])
        assert [delivered for _, delivered in other.started] == [4]
    for replica in first.replicas.values():
        await replica.close()


# -- Redis -------------------------------------------------------------------------------------------------------------


async def test_words_that_come_while_redis_is_away_are_delivered_when_it_is_back(own_server: EmbeddedServer) -> None:
    engine = FakeDecoder(pause_at=3)
    async with (
        PlainService(own_server.url, MODEL, engine, policy=policy()),
        AsyncClient(own_server.url, settings=PATIENT) as client,
    ):
        listening = [asyncio.create_task(heard(client, job(f"w{n}", 600))) for n in range(4)]
        await eventually(lambda: [g.positions for g in engine.running] == [[3]] * 4)
        own_server.kill()
        engine.go_on()
        await eventually(lambda: engine.running == [])
        own_server.start()

        assert await asyncio.gather(*listening) == [words_of(f"w{n}", 600) for n in range(4)]
        await assert_all_accounted_for(client, 4)


async def test_a_server_that_is_killed_in_the_middle_of_streams(own_server: EmbeddedServer) -> None:
    """Whatever call was on its way then: written or not, it is written once."""
    engine = FakeDecoder(step_s=0.003)
    async with (
        PlainService(own_server.url, MODEL, engine, policy=policy()),
        AsyncClient(own_server.url, settings=PATIENT) as client,
    ):
        listening = [asyncio.create_task(heard(client, job(f"w{n}", 250))) for n in range(8)]
        for _ in range(4):
            await asyncio.sleep(0.2)
            own_server.kill()
            own_server.start()

        assert await asyncio.gather(*listening) == [words_of(f"w{n}", 250) for n in range(8)]
        await assert_all_accounted_for(client, 8)


# -- answers that nobody finishes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [({}, Status.CANCELLED, "cancelled"), ({"deadline_s": 1.5}, Status.EXPIRED, "deadline")],
)
async def test_what_was_delivered_is_not_lost_with_the_last_replica(
    redis_url: str, fields: dict[str, Any], status: Status, reason: str
) -> None:
    """The job waits in the router when it is called off, or too late; its answer says how far the dead one came."""
    stuck = FakeDecoder(pause_at=4)
    async with mortal(redis_url, stuck) as service, AsyncClient(redis_url) as client:
        async with client.stream(job("mill", 12, **fields), timeout_s=20) as stream:
            chunks = [await stream.next_chunk() for _ in range(1)]
            await eventually(lambda: stuck.running[0].positions == [4])
            await asyncio.sleep(0.1)  # all four are delivered
            await service.kill("mortal-0", heir=False)
            if status is Status.CANCELLED:
                await stream.cancel()
            with suppress(HeadraceError):
                while chunks[-1] is not None:
                    chunks.append(await stream.next_chunk())
        await assert_all_accounted_for(client, 1)

    assert stream.result is not None
    assert stream.result.status is status
    [choice] = stream.result.output["choices"]
    assert (choice["text"], choice["finish_reason"]) == (words_of("mill", 4), reason)
