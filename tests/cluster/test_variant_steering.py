"""Which variant each pool is told to run: from the autoscaler's observation to a field in Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from headrace.errors import ConfigError
from headrace.keys import keys_of
from headrace.messages.rungs import Rung, pack_rungs, rungs_field, variant_field
from headrace.server.connection import commands, execute
from headrace_cluster.autoscaling.deployments import PoolOptions
from headrace_cluster.autoscaling.observation import ModelLoad, Observation, PoolState
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.planning import scaling_plan
from headrace_cluster.autoscaling.variant_ladder import LadderPolicy
from headrace_cluster.autoscaling.variant_steering import VariantSteering, load_of
from headrace_cluster.config.settings import load_config
from headrace_cluster.scheduling.cost_model import CostModel
from headrace_workers.variants.choice import WantedVariant

RUNGS = (Rung("fp32", 1.0, 1.0), Rung("int8", 0.99, 3.0))
LADDER = LadderPolicy(step_after_s=2, back_after_s=3, drain_s=10)
POOL = PoolPlan("m@cpu", 1, 4)
MODEL = ModelPlan("m", ("m@cpu",), max_jobs=1, max_tokens=1, ladder=LADDER)
PLAN = ScalingPlan((MODEL,), (POOL,))


def cost(job_s: float = 0.1) -> CostModel:
    """A job of one token takes so long."""
    model = CostModel((job_s, 0.0, 0.0))
    model.learn(1, 1, job_s)
    return model


def seen(
    live: int = 0,
    arrivals_per_s: float = 0.0,
    *,
    target: int = 4,
    replicas: int = 4,
    unplaceable: str = "",
    **costs: Any,
) -> Observation:
    load = ModelLoad(waiting=live, arrivals_per_s=arrivals_per_s, mean_tokens=1)
    known = costs.get("costs", {"m": cost()})
    return Observation(0.0, {"m": load}, {"m@cpu": PoolState(replicas, target, 1.0, known, unplaceable)})


# -- how much there is to do ----------------------------------------------------------------------------------


def test_the_load_is_what_all_replicas_would_make_of_it() -> None:
    """Four replicas do 40 jobs a second; 20 come in, so that 200 that wait are done in ten seconds."""
    load = load_of(MODEL, {"m@cpu": POOL}, seen(200, 20, replicas=1))
    assert load is not None
    assert (round(load.drain_s, 6), round(load.busy, 6), load.at_most) == (10, 0.5, True)


def test_replicas_that_may_still_come_are_no_overload() -> None:
    load = load_of(MODEL, {"m@cpu": POOL}, seen(1000, 100, target=3))
    assert load is not None
    assert not load.at_most


def test_what_no_node_can_hold_does_not_count() -> None:
    load = load_of(MODEL, {"m@cpu": POOL}, seen(100, 0, target=2, replicas=1, unplaceable="no GPU"))
    assert load is not None
    assert (load.drain_s, load.at_most) == (pytest.approx(10.0), True)  # type: ignore[comparison-overlap]


def test_more_than_can_be_done_is_finite() -> None:
    """Rates are not known to a tenth: a queue of nothing is no overload, whatever they say."""
    empty, full = (load_of(MODEL, {"m@cpu": POOL}, seen(live, 50)) for live in (0, 400))
    assert empty is not None
    assert full is not None
    assert (empty.drain_s, round(full.drain_s)) == (0, 100)


@pytest.mark.parametrize(
    "unknown",
    [
        seen(costs={}),
        seen(costs={"m": CostModel()}),
        seen(replicas=0, unplaceable="no GPU"),
        Observation(0.0, {}, {}),
        Observation(0.0, {"m": ModelLoad()}, {}),
    ],
)
def test_what_was_never_measured_is_not_guessed(unknown: Observation) -> None:
    assert load_of(MODEL, {"m@cpu": POOL}, unknown) is None


# -- what is written ------------------------------------------------------------------------------------------


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = commands(redis_url)
    await execute(client, "HSET", keys_of("m").pools, rungs_field("cpu"), pack_rungs(RUNGS))
    yield client
    await execute(client, "DEL", keys_of("m").pools)
    await client.aclose()


async def told(client: redis.asyncio.Redis) -> str | None:
    said = await execute(client, "HGET", keys_of("m").pools, variant_field("cpu"))
    return None if said is None else said.decode()


async def test_overload_changes_the_field_and_slack_changes_it_back(
    client: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.autoscaling")
    steering, said = VariantSteering(PLAN), []
    for now_s in range(12):
        await steering.steer(client, float(now_s), seen(1000, 60) if now_s < 4 else seen(costs={"m": cost(0.03)}))
        said.append(await told(client))
    assert said == ["fp32"] * 3 + ["int8"] * 4 + ["fp32"] * 5
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "headrace.autoscaling"]
    assert [(line["event"], line["pool"], line["from"], line["to"]) for line in lines] == [
        ("variant", "m@cpu", None, "fp32"),
        ("variant", "m@cpu", "fp32", "int8"),
        ("variant", "m@cpu", "int8", "fp32"),
    ]
    assert all(line["reasons"] for line in lines)


async def test_who_comes_after_goes_on_where_the_last_one_was(client: redis.asyncio.Redis) -> None:
    await execute(client, "HSET", keys_of("m").pools, variant_field("cpu"), "int8")
    for now_s in range(3):
        await VariantSteering(PLAN).steer(client, float(now_s), seen())
    assert await told(client) == "int8"


@pytest.mark.parametrize("packed", [b"", b"nonsense", b'[{"variant": 1}]'])
async def test_rungs_that_are_none_decide_nothing(client: redis.asyncio.Redis, packed: bytes) -> None:
    await execute(client, "HSET", keys_of("m").pools, rungs_field("cpu"), packed)
    await VariantSteering(PLAN).steer(client, 0.0, seen(1000, 60))
    assert await told(client) is None


# -- what is configured ----------------------------------------------------------------------------------------


def config(**model: Any) -> Any:
    adapting = {"engine": {"model": "/models/m"}, "adaptive": {}} | model
    return load_config({"redis_url": "redis://nowhere", "models": {"m": adapting}})


def test_a_pool_of_fixed_size_adapts_too() -> None:
    """Its deployment has a policy, so that Serve keeps the loop going in which variants are chosen."""
    fixed = config(scaling={"drain_s": 5}, adaptive={"floor": 0.9, "variants": ["fp32", {"name": "int8", "speed": 2}]})
    assert scaling_plan(fixed).models[0].ladder == LadderPolicy(0.9, 15, 120, 5)
    assert fixed.models["m"].adaptive.wanted == (WantedVariant("fp32"), WantedVariant("int8", None, 2))
    options = PoolOptions(fixed, generation="1").of("m@cpu", fixed.models["m"].pools[0])
    assert (options["autoscaling_config"].min_replicas, options["autoscaling_config"].max_replicas) == (1, 1)
    plain = config(adaptive=None)
    assert PoolOptions(plain, generation="1").of("m@cpu", plain.models["m"].pools[0])["num_replicas"] == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"engine": {"kind": "echo"}}, "an engine of kind echo has no variants to choose between"),
        ({"engine": {"model": "m", "variant": "int8"}}, "leave engine.variant out"),
        ({"adaptive": {"variants": ["int8"]}}, "name two at least"),
        ({"adaptive": {"variants": ["int8", "int8"]}}, "one is named twice: int8"),
        ({"adaptive": {"variants": ["Int8", "int4"]}}, "name"),
        ({"adaptive": {"flor": 0.9}}, "flor"),
        ({"adaptive": {"floor": 1.5}}, "floor"),
    ],
)
def test_what_cannot_adapt_is_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**model)
