"""What routers have learned of pools outlives them, and nothing that stands in Redis can hurt one."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from headrace import AsyncClient, Job
from headrace.keys import keys_of
from headrace.models.registry import Limits, register
from headrace.server.connection import commands, execute
from headrace_cluster.router.pool_memory import JOBS, PoolMemory, Remembered, cost_field
from headrace_cluster.scheduling.cost_model import CostModel
from headrace_cluster.scheduling.pool_costs import PoolCosts
from headrace_cluster.scheduling.routing import PoolFacts
from support.bad_days import SlowEngine
from support.routing import MODEL, jobs, outputs_of
from support.service import PlainService

KEY = keys_of(MODEL).pools


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = commands(redis_url, retries=0)
    await register(client, MODEL, Limits())
    yield client
    await client.aclose()


def costs_of(*pools: str, run_s: float = 0.5) -> PoolCosts:
    costs = PoolCosts()
    for pool in pools:
        for _ in range(10):
            costs.learn(pool, 10, 200, run_s)
    return costs


# -- what is known -----------------------------------------------------------------------------------------------------


def test_pools_learn_separately() -> None:
    costs = costs_of("cpu", run_s=2.0)
    costs.learn("gpu", 10, 200, 0.01)

    assert costs.of("cpu").predict_s(10, 200) == pytest.approx(2.0)
    assert costs.of("gpu").predict_s(10, 200) == pytest.approx(0.01, rel=0.2)
    assert costs.trusted("cpu")
    assert not costs.trusted("gpu")


def test_what_is_known_beforehand_is_the_pool_s_own() -> None:
    costs = PoolCosts({"gpu": PoolFacts(weight=20, prior=(1e-3, 0.0, 1e-6))})
    assert costs.facts("gpu").weight == 20
    assert costs.facts("other").weight == 1
    assert costs.of("gpu").predict_s(1, 0) == pytest.approx(1e-3)


def test_how_much_time_jobs_give_is_what_nearly_all_give() -> None:
    costs = PoolCosts()
    assert costs.slack_s is None
    for n in range(1000):
        costs.note_slack(2.0 if n % 5 == 0 else 60.0)
    assert costs.slack_s == 2.0
    for _ in range(300):
        costs.note_slack(30.0)
    assert costs.slack_s == 30.0


def test_the_size_of_jobs_is_a_mean_of_recent_ones() -> None:
    costs = costs_of("cpu")
    assert costs.mean_tokens == pytest.approx(20)
    for _ in range(400):
        costs.learn("cpu", 10, 400, 0.5)
    assert costs.mean_tokens == pytest.approx(40, rel=0.01)


def test_what_was_learned_since_is_worth_more_than_what_was_known() -> None:
    costs = costs_of("cpu", run_s=2.0)
    costs.restore(costs_of("cpu", "gpu").models, 7.0, 9.0)

    assert costs.of("cpu").predict_s(10, 200) == pytest.approx(2.0)
    assert costs.of("gpu").predict_s(10, 200) == pytest.approx(0.5)
    assert (costs.mean_tokens, costs.slack_s) == (20, 9.0)


# -- in Redis ----------------------------------------------------------------------------------------------------------


async def test_the_next_router_knows_what_the_last_one_knew(client: redis.asyncio.Redis) -> None:
    known = costs_of("cpu", "")
    known.note_slack(3.0)
    await PoolMemory(MODEL, client, known).save()
    costs = PoolCosts()
    await PoolMemory(MODEL, client, costs).load()

    assert {pool: model.to_state() for pool, model in costs.models.items()} == {
        pool: model.to_state() for pool, model in known.models.items()
    }
    assert (costs.mean_tokens, costs.slack_s) == (20, 3.0)
    assert costs.trusted("cpu")


async def test_only_what_has_changed_is_written(client: redis.asyncio.Redis) -> None:
    """Routers that have nothing to do leave alone what busy ones write."""
    costs = costs_of("cpu", "gpu")
    memory = PoolMemory(MODEL, client, costs)
    await memory.save()
    await execute(client, "DEL", KEY)
    await memory.save()
    assert not await execute(client, "EXISTS", KEY)
    costs.learn("gpu", 1, 1, 1.0)
    await memory.save()

    assert set(await execute(client, "HKEYS", KEY)) == {b"jobs", b"cost@gpu"}


async def test_what_stands_there_is_what_the_contract_says(client: redis.asyncio.Redis) -> None:
    await PoolMemory(MODEL, client, costs_of("cpu")).save()
    jobs_field = json.loads(await execute(client, "HGET", KEY, JOBS))
    assert jobs_field == {"mean_tokens": 20.0, "slack_s": None}
    state = json.loads(await execute(client, "HGET", KEY, cost_field("cpu")))
    assert CostModel.from_state(state).measured == 10


GARBAGE = {
    b"jobs": [b"", b"{", b"[1]", b'{"mean_tokens": "x", "slack_s": -1}', b'{"mean_tokens": NaN, "slack_s": Infinity}'],
    b"cost@cpu": [b"", b"\xff\xfe", b"null", b"{}", b'{"prior": [1]}', b"[" * 10_000],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GARBAGE.items() for value in values])
async def test_garbage_is_nothing(client: redis.asyncio.Redis, name: bytes, value: bytes) -> None:
    await execute(client, "HSET", KEY, name, value, "variant@cpu", "int8", b"\xff", b"\xff")
    costs = PoolCosts()
    await PoolMemory(MODEL, client, costs).load()

    assert (costs.models, costs.mean_tokens, costs.slack_s) == ({}, None, None)


def test_what_is_not_ours_is_left_alone() -> None:
    assert Remembered.of({b"variant@cpu": b"int8", b"\xff": b"{"}) == Remembered()


async def test_pools_of_long_ago_are_forgotten(client: redis.asyncio.Redis) -> None:
    """Names come and go for years, and the hash stays small."""
    await PoolMemory(MODEL, client, costs_of(*(f"pool-{n}" for n in range(60)))).save()
    await PoolMemory(MODEL, client, costs_of(*(f"other-{n}" for n in range(60)))).save()
    await PoolMemory(MODEL, client, PoolCosts({"other-7": PoolFacts()})).load()

    assert set(await execute(client, "HKEYS", KEY)) == {b"jobs", b"cost@other-7"}


async def test_without_redis_nothing_happens_but_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = commands("redis://127.0.0.1:1/0", retries=0)
    costs = costs_of("cpu")
    memory = PoolMemory(MODEL, client, costs)
    with caplog.at_level(logging.WARNING, "headrace.cost"):
        await memory.load()
        await memory.save()
    await client.aclose()

    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "what is known of pools is not read",
        "what is known of pools is not written",
    ]


async def test_a_router_begins_with_what_the_last_one_knew(redis_url: str) -> None:
    async with PlainService(redis_url, MODEL, SlowEngine(0.02)) as first, AsyncClient(redis_url) as client:
        await outputs_of(client, jobs(300))
        await client.run(Job(model=MODEL, input="x", deadline_s=60), timeout_s=5)
        known = first.router.scheduler.costs
    async with PlainService(redis_url, MODEL, SlowEngine(0.02)) as second:
        costs = second.router.scheduler.costs
        assert costs.of("").measured == known.of("").measured > 0
        assert costs.of("").predict_s(64, 64) == pytest.approx(known.of("").predict_s(64, 64))
        assert costs.mean_tokens == 1.0
        assert costs.slack_s == pytest.approx(60, abs=1)
