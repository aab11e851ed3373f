"""Replicas that die, vanish, hang and misreport: jobs go elsewhere, or are told in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from headrace import AsyncClient, FailureCode, Job, JobDeadError, Status
from headrace.messages import Batch, BatchOutcome, Fate
from headrace_cluster.pools.port import BatchFailedError, ReplicaLostError
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_cluster.slots.ledger import SlotLedger
from headrace_workers.engines.echo import EchoEngine
from headrace_workers.replicas.replica import Replica
from support.bad_days import GatedEngine, RecordingEngine, SlowEngine
from support.local_pool import Runs
from support.replicas import DyingReplica, HangingReplica
from support.service import PlainService
from support.waiting import eventually

MODEL = "m"


def policy(**fields: Any) -> RoutingPolicy:
    return RoutingPolicy(**{"block_ms": 50, "call_timeout_s": 5.0, **fields})


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=n, id=f"job-{n}") for n in range(count)]


async def assert_all_accounted_for(client: AsyncClient, submitted: int) -> None:
    audit = await client.audit(MODEL)
    assert (audit.submitted, audit.finished, audit.live, audit.lost, audit.doubled) == (submitted, submitted, 0, 0, 0)


def with_pool(service: PlainService, replicas: Mapping[str, Runs]) -> PlainService:
    """The service with other replicas in its pool than those it made."""
    service.pool.replicas = dict(replicas)
    return service


# -- one of several is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_the_work", [False, True])
async def test_what_a_lost_replica_had_is_dispatched_to_another(redis_url: str, after_the_work: bool) -> None:
    """Whether it died before it answered or after: each job gets its one answer."""
    async with AsyncClient(redis_url) as client:
        service = PlainService(redis_url, MODEL, EchoEngine(), EchoEngine(), policy=policy())
        dying = DyingReplica(service.replicas["replica-0"], after_the_work=after_the_work)
        with_pool(service, {"replica-0": dying, "replica-1": service.replicas["replica-1"]})
        async with service:
            outputs = [result.unwrap() async for result in client.map(jobs(300))]
            await assert_all_accounted_for(client, 300)

    assert outputs == list(range(300))
    assert dying.deaths >= 1
    if after_the_work:
        assert service.router.counts.late > 0


async def test_a_replica_that_failed_is_not_called_again_at_once(redis_url: str) -> None:
    """It is suspended for a second; meanwhile the other one works."""
    service = PlainService(redis_url, MODEL, EchoEngine(), SlowEngine(0.005), policy=policy())
    dying = DyingReplica(service.replicas["replica-0"])
    with_pool(service, {"replica-0": dying, "replica-1": service.replicas["replica-1"]})
    async with service, AsyncClient(redis_url) as client:
        async with asyncio.timeout(10):
            assert len([result async for result in client.map(jobs(400), in_flight=64)]) == 400

    assert dying.deaths <= 8


async def test_a_replica_is_tried_again_when_its_suspension_is_over(redis_url: str) -> None:
    """Though the other one is busy for long, and nothing else happens that would wake the dispatcher."""
    engine = GatedEngine()
    service = PlainService(redis_url, MODEL, engine, EchoEngine(), policy=policy(call_timeout_s=30))
    first_time = [True]

    def dies_once(_: Batch) -> bool:
        return bool(first_time) and first_time.pop()

    with_pool(
        service,
        {
            "replica-0": service.replicas["replica-0"],
            "replica-1": DyingReplica(service.replicas["replica-1"], dies_once),
        },
    )
    async with service, AsyncClient(redis_url) as client:
        stuck = await client.submit(jobs(1)[0])
        await eventually(lambda: service.router.scheduler.slots.in_flight == 1)
        result = await client.run(Job(model=MODEL, input="second"), timeout_s=5)
        engine.open()
        assert (await client.result(stuck, timeout_s=5)).ok

    assert result.ok
    assert first_time == []


# -- all of them are lost ----------------------------------------------------------------------------------------------


async def test_when_all_replicas_are_gone_jobs_wait_for_one_to_return(redis_url: str) -> None:
    """Nobody is told of an error: the pool is being restarted."""
    async with PlainService(redis_url, MODEL, policy=policy()) as service, AsyncClient(redis_url) as client:
        service.pool.change({})
        receipts = await client.submit_many(jobs(50))
        await asyncio.sleep(0.2)
        assert (await client.audit(MODEL)).finished == 0
        service.pool.change(service.replicas)

        assert [(await client.result(receipt, timeout_s=5)).unwrap() for receipt in receipts] == list(range(50))
        await assert_all_accounted_for(client, 50)


async def test_jobs_that_were_out_when_all_replicas_went_are_answered_when_one_returns(redis_url: str) -> None:
    """The router holds them meanwhile."""

    class Going:
        def __init__(self) -> None:
            self.gone = asyncio.Event()

        async def run(self, message: bytes) -> bytes:
            await self.gone.wait()
            raise ReplicaLostError("went")

    going = Going()
    service = with_pool(PlainService(redis_url, MODEL, policy=policy()), {"going": going})
    async with service, AsyncClient(redis_url) as client:
        receipts = await client.submit_many(jobs(20))
        await eventually(lambda: service.router.counts.dispatched >= 1)
        service.pool.change({})
        going.gone.set()
        await eventually(lambda: service.router.counts.returned >= 1)
        service.pool.change(service.replicas)

        assert [(await client.result(receipt, timeout_s=5)).unwrap() for receipt in receipts] == list(range(20))
        await assert_all_accounted_for(client, 20)


async def test_replicas_that_come_and_go_all_the_time(redis_url: str) -> None:
    """A pool that is rolled over under load: everything is answered, once."""
    service = PlainService(redis_url, MODEL, *[SlowEngine(0.003) for _ in range(4)], policy=policy())
    every = dict(service.replicas)
    async with service, AsyncClient(redis_url) as client:

        async def rolling() -> None:
            for n in range(10_000):
                service.pool.change({name: every[name] for name in sorted(every)[n % 4 :][: 1 + n % 3]})
                await asyncio.sleep(0.01)

        turning = asyncio.create_task(rolling())
        outputs = [result.unwrap() async for result in client.map(jobs(1500), in_flight=200)]
        turning.cancel()
        await asyncio.wait({turning})
        service.pool.change(every)
        assert outputs == list(range(1500))
        await assert_all_accounted_for(client, 1500)


# -- attempts ----------------------------------------------------------------------------------------------------------


@pytest.mark.leaves_jobs
async def test_a_job_that_no_replica_can_run_is_told_so_in_the_end(redis_url: str) -> None:
    """When it has failed alone twice it is taken to be the cause, and set aside."""
    service = PlainService(redis_url, MODEL, EchoEngine(), EchoEngine(), EchoEngine(), policy=policy())
    dying = {name: DyingReplica(replica) for name, replica in service.replicas.items()}
    with_pool(service, dying)
    async with service, AsyncClient(redis_url) as client:
        result = await client.run(jobs(1)[0], timeout_s=5)
        await assert_all_accounted_for(client, 1)

    assert result.failure is not None
    assert result.status is Status.DEAD
    assert result.failure.code == FailureCode.POISON
    assert sum(replica.deaths for replica in dying.values()) == 2
    with pytest.raises(JobDeadError, match="2 times alone, 2 times in all"):
        result.unwrap()


async def test_a_replica_whose_run_raises_is_given_the_batch_again(redis_url: str) -> None:
    """A fault of the replica itself, not of the engine: it lives, and may do better."""
    service = PlainService(redis_url, MODEL, policy=policy())
    real = service.replicas["replica-0"]

    class Stumbling:
        stumbled = 0

        async def run(self, message: bytes) -> bytes:
            if not self.stumbled:
                self.stumbled += 1
                raise BatchFailedError("stumbled")
            return await real.run(message)

    service.router.scheduler.slots = SlotLedger(suspension_s=0.05)
    async with with_pool(service, {"replica-0": Stumbling()}), AsyncClient(redis_url) as client:
        assert (await client.run(jobs(1)[0], timeout_s=5)).ok

    assert service.router.counts.returned == 1


@pytest.mark.parametrize("reply", [b"", b"nonsense", b"\x90", b"\x93\x90\x90\x00", b"\x93\x00\x00\x00"])
async def test_a_reply_that_is_none_counts_as_a_failure(redis_url: str, reply: bytes) -> None:
    """Nobody knows whether the batch ran; dispatching it again is safe."""
    service = PlainService(redis_url, MODEL, policy=policy())
    real, babbled = service.replicas["replica-0"], list[bytes]()

    class Babbling:
        async def run(self, message: bytes) -> bytes:
            if not babbled:
                babbled.append(reply)
                return reply
            return await real.run(message)

    service.router.scheduler.slots = SlotLedger(suspension_s=0.05)
    async with with_pool(service, {"replica-0": Babbling()}), AsyncClient(redis_url) as client:
        assert (await client.run(jobs(1)[0], timeout_s=5)).ok


async def test_a_replica_may_return_some_of_a_batch(redis_url: str) -> None:
    """Only those are dispatched again."""
    service = PlainService(redis_url, MODEL, policy=policy())
    real = service.replicas["replica-0"]

    class Halving:
        """Runs the first half of every batch of more than one."""

        async def run(self, message: bytes) -> bytes:
            batch = Batch.from_bytes(message)
            half = max(1, len(batch.entries) // 2)
            done = BatchOutcome.from_bytes(
                await real.run(Batch(batch.model, batch.now_ms, batch.entries[:half]).to_bytes())
            )
            left = len(batch.entries) - half
            return BatchOutcome(
                [*done.fates, *[Fate.RETURNED] * left], [*done.tokens, *[0] * left], done.run_s
            ).to_bytes()

    service = with_pool(service, {"replica-0": Halving()})
    async with service, AsyncClient(redis_url) as client:
        assert [result.unwrap() async for result in client.map(jobs(200))] == list(range(200))
        await assert_all_accounted_for(client, 200)


# -- time-outs ---------------------------------------------------------------------------------------------------------


async def test_a_replica_that_hangs_is_given_up(redis_url: str) -> None:
    """After `call_timeout_s` its batch goes elsewhere."""
    service = PlainService(redis_url, MODEL, EchoEngine(), EchoEngine(), policy=policy(call_timeout_s=0.1))
    hanging = HangingReplica()
    with_pool(service, {"replica-0": hanging, "replica-1": service.replicas["replica-1"]})
    async with service, AsyncClient(redis_url) as client:
        assert [result.unwrap() async for result in client.map(jobs(100))] == list(range(100))
        await assert_all_accounted_for(client, 100)

    assert hanging.calls >= 1


async def test_a_slow_replica_that_answers_after_all_is_not_answered_twice(redis_url: str) -> None:
    """It was given up, its batch ran elsewhere, and then it came: the fence keeps the first answer."""
    slow, quick = GatedEngine(), RecordingEngine()
    service = PlainService(redis_url, MODEL, slow, quick, policy=policy(call_timeout_s=0.4))
    # The slow one goes on in its threads, as an actor does whose caller gave up.
    hidden: list[asyncio.Task[bytes]] = []
    real = service.replicas["replica-0"]

    class Unhurried:
        async def run(self, message: bytes) -> bytes:
            hidden.append(asyncio.create_task(real.run(message)))
            return await asyncio.shield(hidden[-1])

    with_pool(service, {"replica-0": Unhurried(), "replica-1": service.replicas["replica-1"]})
    async with service, AsyncClient(redis_url) as client:
        assert (await client.run(jobs(1)[0], timeout_s=5)).ok
        slow.open()
        outcomes = [BatchOutcome.from_bytes(outcome) for outcome in await asyncio.gather(*hidden)]
        await assert_all_accounted_for(client, 1)

    assert outcomes
    assert all(list(outcome.fates) == [Fate.LATE] for outcome in outcomes)
    assert slow.ran == quick.ran == [0]


async def test_a_stopped_router_waits_for_what_is_out(redis_url: str) -> None:
    """And gives up nothing: a batch that is lost meanwhile is dispatched again, and answered, before `run` returns."""
    engine = GatedEngine()
    service = PlainService(redis_url, MODEL, engine, policy=policy(forming=FormingPolicy(max_jobs=2)))
    async with AsyncClient(redis_url) as client:
        async with service:
            receipts = await client.submit_many(jobs(4))
            await eventually(lambda: service.router.counts.dispatched == 4)
            service.router.stop()
            await asyncio.sleep(0.1)
            assert service._task is not None
            assert not service._task.done()
            engine.open()
        assert [(await client.result(receipt, timeout_s=5)).ok for receipt in receipts] == [True] * 4


# -- the replica by itself ---------------------------------------------------------------------------------------------


async def test_preparing_goes_on_while_a_batch_computes(redis_url: str) -> None:
    """Two batches at one replica: the second is prepared while the first one runs."""
    engine = GatedEngine()
    forming = FormingPolicy(max_jobs=1)
    async with (
        PlainService(redis_url, MODEL, engine, policy=policy(forming=forming)),
        AsyncClient(redis_url) as client,
    ):
        receipts = await client.submit_many(jobs(2))
        await eventually(lambda: len(engine.prepared) == 2)
        assert engine.ran == []
        engine.open()
        for receipt in receipts:
            await client.result(receipt, timeout_s=5)


async def test_results_tell_how_long_a_job_took(redis_url: str) -> None:
    """From submission until a replica began, and what the engine spent on the batch."""
    async with PlainService(redis_url, MODEL, SlowEngine(0.05)), AsyncClient(redis_url) as client:
        results = [result async for result in client.map(jobs(3), in_flight=1)]

    assert all(result.run_ms >= 50 for result in results)
    assert all(0 <= result.queued_ms < 2000 for result in results)
    assert {result.variant for result in results} == {"echo"}
    assert {result.input_tokens for result in results} == {1}


async def test_a_replica_refuses_a_message_that_is_no_batch(redis_url: str) -> None:
    """The call fails; nothing else does."""
    replica = Replica(MODEL, EchoEngine(), redis_url=redis_url)
    with pytest.raises(Exception, match=r"not msgpack|expected an array"):
        await replica.run(b"\xc1")
    await replica.close()
