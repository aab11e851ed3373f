"""A group of suspects has its replica to itself, whichever routers send there."""

from __future__ import annotations

import asyncio
from typing import Any

from headrace import AsyncClient, Job
from headrace.messages import Batch, BatchOutcome, Fate, JobOutcomes, LaneEntry
from headrace_cluster.scheduling.batch_former import FormingPolicy, WaitingJob
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_cluster.scheduling.scheduler import Scheduler
from headrace_workers.replicas.replica import Replica
from headrace_workers.replicas.turns import Turns
from support.bad_days import GatedEngine
from support.decoders import FakeDecoder
from support.raw import envelope
from support.service import PlainService
from support.waiting import eventually

MODEL = "m"
PAYLOAD = bytes.fromhex("81a5696e70757401")


def test_batches_run_beside_each_other() -> None:
    turns = Turns()
    assert turns.enter(0.0, alone=False)
    assert turns.enter(0.0, alone=False)


def test_a_lone_batch_is_refused_where_others_run_and_refuses_others_while_it_runs() -> None:
    turns = Turns()
    assert turns.enter(0.0, alone=False)
    assert not turns.enter(0.0, alone=True)
    turns.leave()
    assert turns.enter(0.1, alone=True)
    assert not turns.enter(0.1, alone=False)
    assert not turns.enter(0.1, alone=True)
    turns.leave()
    assert turns.enter(0.2, alone=False)


def test_a_lone_batch_that_was_refused_finds_the_replica_idle_when_it_comes_again() -> None:
    """Others come all the time: without this it would never have its turn."""
    turns = Turns()
    assert turns.enter(0.0, alone=False)
    assert not turns.enter(0.1, alone=True)
    assert not turns.enter(0.2, alone=False)
    turns.leave()
    assert turns.enter(0.3, alone=True)


def test_a_lone_batch_that_does_not_come_again_is_not_waited_for() -> None:
    turns = Turns()
    assert turns.enter(0.0, alone=False)
    assert not turns.enter(0.1, alone=True)
    assert not turns.enter(0.2, alone=False)
    assert turns.enter(1.0, alone=False)


def message(job_id: str, *, alone: bool) -> bytes:
    return Batch(MODEL, 1, [LaneEntry(1, "1-1", envelope(job_id), PAYLOAD)], alone).to_bytes()


async def test_a_replica_returns_what_it_refuses_at_once(redis_url: str) -> None:
    engine = GatedEngine()
    replica = Replica(MODEL, engine, redis_url=redis_url)
    running = asyncio.create_task(replica.run(message("first", alone=False)))
    await asyncio.sleep(0)

    refused = BatchOutcome.from_bytes(await replica.run(message("suspect", alone=True)))
    assert refused.fates == [Fate.RETURNED]

    engine.open()
    await running
    assert BatchOutcome.from_bytes(await replica.run(message("suspect", alone=True))).fates != [Fate.RETURNED]
    await replica.close()


def test_suspects_that_were_refused_stay_suspects_and_are_sent_again_soon() -> None:
    scheduler = Scheduler(FormingPolicy())
    scheduler.slots.update(["r0"])
    suspects = [WaitingJob(n, 1, 1, 1, 0.0) for n in range(2)]
    scheduler.quarantine.add(suspects)

    chosen = scheduler.next_batch(0.0)
    assert chosen is not None
    assert chosen[1].alone
    scheduler.refused(*chosen, 0.0)
    assert scheduler.next_batch(0.05) is None
    assert scheduler.next_batch(0.2) == chosen


async def test_a_replica_that_generates_refuses_suspects_beside_others(redis_url: str) -> None:
    """It says so of every job of the batch, at once, and the router takes its slots back."""
    engine = FakeDecoder(pause_at=2)
    service = PlainService(redis_url, "m", engine, policy=RoutingPolicy(block_ms=50, jobs_per_replica=4))
    async with service, AsyncClient(redis_url) as client:
        running = await client.submit(Job(model="m", input="mill", params={"max_tokens": 4}))
        await eventually(lambda: engine.running)
        suspects = [LaneEntry(1, f"1-{n}", b"1 a b c 1 0 0 d - -", b"") for n in range(2)]
        replica: Any = service.replicas["replica-0"]
        replies = replica.stream(Batch("m", 1, suspects, alone=True).to_bytes())
        [reply] = [JobOutcomes.from_bytes(reply) async for reply in replies]
        assert (list(reply.numbers), list(reply.fates)) == ([0, 1], [Fate.RETURNED] * 2)
        engine.go_on()
        assert (await client.result(running, timeout_s=5)).ok


def test_jobs_that_were_refused_beside_suspects_are_no_suspects() -> None:
    scheduler = Scheduler(FormingPolicy())
    scheduler.slots.update(["r0"])
    scheduler.former.add(WaitingJob("a", 1, 1, 1, 0.0))
    chosen = scheduler.next_batch(10.0)
    assert chosen is not None
    scheduler.refused(*chosen, 10.0)
    assert len(scheduler.quarantine) == 0
    assert len(scheduler.former) == 1
