"""The thread that decides, on a real Redis; and the policy as Serve's controller calls it, pickled as it travels."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from headrace import AsyncClient, Job
from headrace.keys import keys_of
from headrace.models.registry import Limits, register
from headrace.server.connection import commands
from headrace_cluster.autoscaling import loops as loops_module
from headrace_cluster.autoscaling.autoscaler import Decision
from headrace_cluster.autoscaling.backlog import BacklogReader
from headrace_cluster.autoscaling.decision_log import DecisionLog
from headrace_cluster.autoscaling.loop import ScalingLoop
from headrace_cluster.autoscaling.metrics import ScalingMeter
from headrace_cluster.autoscaling.observation import Observation
from headrace_cluster.autoscaling.placeable import Node, why_unplaceable
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.policy import autoscaling_config
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.scheduling.cost_model import CostModel
from headrace_workers.telemetry.metering import MemoryMeter
from support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.leaves_jobs  # nobody runs them here

POOL = PoolPlan("m@cpu", 0, 50)
PLAN = ScalingPlan((ModelPlan("m", ("m@cpu",), drain_s=5),), (POOL,))


def address(url: str) -> RedisAddress:
    return RedisAddress(SecretStr(url))


def slow(url: str, job_s: float = 0.1) -> None:
    """A job of `m` takes so long, as a router has learned."""
    state = json.dumps(CostModel((0.0, job_s, 0.0)).to_state())
    with redis.Redis.from_url(url) as client:
        client.hset(keys_of("m").pools, mapping={"cost@cpu": state, "jobs": '{"mean_tokens": 7.5, "slack_s": 60}'})


async def submit(url: str, count: int, **fields: Any) -> None:
    client = commands(url)
    await register(client, "m", Limits())
    await client.aclose()
    async with AsyncClient(url) as producer:
        await producer.submit_many([Job(model="m", input=n, **fields) for n in range(count)])


# -- what is read -----------------------------------------------------------------------------------------


async def test_the_backlog_is_read_as_it_is(redis_url: str) -> None:
    """Jobs that wait, jobs that a router has, their number so far, and what was learned of them."""
    await submit(redis_url, 30)
    slow(redis_url, 0.25)
    client = commands(redis_url)
    reader = BacklogReader(PLAN, client)
    load = (await reader.look(0.0))["m"]
    assert (load.waiting, load.delivered, load.submitted) == (30, 0, 30)
    assert (load.mean_tokens, load.slack_s) == (7.5, 60.0)
    assert reader.costs["m@cpu"]["m"].predict_s(1, 1) == pytest.approx(0.25)
    (lane,) = [lane for lane in keys_of("m").lanes if await client.xlen(lane)]
    await client.xreadgroup("g", "router", {lane: ">"}, count=12)
    load = (await reader.look(1.0))["m"]
    assert (load.waiting, load.delivered) == (18, 12)
    assert load.oldest_s > 0
    await client.aclose()


async def test_a_model_that_nobody_registered_has_no_work(redis_url: str) -> None:
    client = commands(redis_url)
    assert (await BacklogReader(PLAN, client).look(0.0))["m"].live == 0
    await client.aclose()


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"mean_tokens": "x"}', '{"mean_tokens": -1, "slack_s": "NaN"}'])
async def test_garbage_is_unknown(redis_url: str, raw: str) -> None:
    """A pool then has its prior, and a job the usual size."""
    client = commands(redis_url)
    await client.hset(keys_of("m").pools, mapping={"cost@cpu": raw, "jobs": raw})
    reader = BacklogReader(PLAN, client)
    load = (await reader.look(0.0))["m"]
    assert (load.mean_tokens, load.slack_s) == (100.0, None)
    assert reader.costs["m@cpu"].get("m", CostModel()).predict_s(1, 100) == CostModel().predict_s(1, 100)
    await client.aclose()


async def test_shards_are_summed(redis_url: str) -> None:
    sharded = ScalingPlan((ModelPlan("m", ("m@cpu",), shards=("m", "n")),), (POOL,))
    client = commands(redis_url)
    await register(client, "n", Limits())
    await submit(redis_url, 3)
    async with AsyncClient(redis_url) as producer:
        await producer.submit_many([Job(model="n", input=n) for n in range(4)])
    assert (await BacklogReader(sharded, client).look(0.0))["m"].waiting == 7
    await client.aclose()


# -- the thread -------------------------------------------------------------------------------------------


@pytest.fixture
def loop_of() -> Iterator[Callable[..., ScalingLoop]]:
    """Makes loops that look often, and ends their threads."""
    made: list[ScalingLoop] = []

    def make(url: str, **options: Any) -> ScalingLoop:
        made.append(ScalingLoop(PLAN, address(url), **({"every_s": 0.02} | options)))
        return made[-1]

    yield make
    for loop in made:
        loop.stop()


async def test_a_backlog_raises_the_target(redis_url: str, loop_of: Callable[..., ScalingLoop]) -> None:
    """Asked again and again, as the controller does; whoever asks first gets back what he had."""
    await submit(redis_url, 300)
    slow(redis_url)
    seen: list[Observation] = []
    loop = loop_of(redis_url, listener=lambda observed, _decisions: seen.append(observed))
    assert loop.replicas("m@cpu", running=1, target=1) == 1
    assert await eventually(lambda: loop.replicas("m@cpu", running=1, target=1) > 5)
    assert seen[-1].models["m"].waiting == 300


async def test_while_redis_is_away_nothing_changes(
    redis_url: str, loop_of: Callable[..., ScalingLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said, once."""
    with caplog.at_level(logging.WARNING, "headrace.autoscaling"):
        loop = loop_of("redis://localhost:1/0")
        assert loop.replicas("m@cpu", running=7, target=7) == 7
        await eventually(lambda: caplog.records)
        assert loop.replicas("m@cpu", running=7, target=7) == 7
    assert len(caplog.records) == 1
    told = json.loads(caplog.records[0].getMessage())
    assert told["event"] == "holding"
    assert "cannot be read" in told["reason"]


def test_the_thread_ends_when_nobody_asks_and_begins_when_somebody_does(
    redis_url: str, loop_of: Callable[..., ScalingLoop]
) -> None:
    """An application that is deleted leaves nothing behind in the controller."""
    loop = loop_of(redis_url, forgotten_s=0.1)
    loop.replicas("m@cpu", running=1, target=1)
    thread = loop._thread
    assert thread is not None
    eventually_sync(lambda: not thread.is_alive())
    loop.replicas("m@cpu", running=1, target=1)
    assert loop._thread is not None
    assert loop._thread.is_alive()


async def test_nodes_that_are_missing_are_told(redis_url: str, loop_of: Callable[..., ScalingLoop]) -> None:
    decided: list[Decision] = []
    loop = loop_of(
        redis_url, nodes=lambda: [Node(0.5, 0, {})], listener=lambda _seen, decisions: decided.extend(decisions)
    )
    loop.replicas("m@cpu", running=0, target=0)
    await eventually(lambda: decided)
    assert "no node can hold a replica: it asks for 1 CPU, and the most that a node has is 0.5" in decided[0].reasons[0]


# -- the policy, as Serve has it --------------------------------------------------------------------------


def context(config: AutoscalingConfig, *, running: int, target: int, app: str = "test-app") -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=DeploymentID(name="m@cpu", app_name=app),
        deployment_name="m@cpu",
        app_name=app,
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics={},
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )


@pytest.fixture
def loops() -> Iterator[dict[tuple[str, str], ScalingLoop]]:
    """Those of this process, ended after the test."""
    yield loops_module._loops
    for loop in loops_module._loops.values():
        loop.stop()
    loops_module._loops.clear()


@pytest.fixture
def _no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Ray here to ask."""
    monkeypatch.setattr(loops_module, "_nodes", lambda: [Node(64, 8, {})])


@pytest.mark.usefixtures("_no_nodes")
async def test_serve_does_at_once_what_is_decided(redis_url: str, loops: dict[Any, ScalingLoop]) -> None:
    """Through Serve's own delays and factors, which do nothing; from none to many, and the first answer is `target`."""
    await submit(redis_url, 300)
    slow(redis_url)
    config = autoscaling_config(PLAN, POOL, address(redis_url), generation="a")
    asked = _apply_autoscaling_config(config.policy.get_policy())
    assert asked(context(config, running=0, target=0))[0] == 0
    up = await eventually(lambda: asked(context(config, running=0, target=0))[0])
    assert up > 5
    assert list(loops) == [("test-app", "a")]


@pytest.mark.usefixtures("_no_nodes")
def test_pools_of_one_application_share_a_loop(redis_url: str, loops: dict[Any, ScalingLoop]) -> None:
    """And another generation, or another application, has its own."""
    for app, generation in (("x", "a"), ("x", "a"), ("x", "b"), ("y", "a")):
        config = autoscaling_config(PLAN, POOL, address(redis_url), generation=generation)
        config.policy.get_policy()(context(config, running=1, target=1, app=app))
    assert set(loops) == {("x", "a"), ("x", "b"), ("y", "a")}


def test_nobody_who_looks_on_sees_the_password() -> None:
    """Serve shows its configuration to whoever asks for its status."""
    config = autoscaling_config(PLAN, POOL, address("redis://:sesame@host/0"), generation="a")
    assert "sesame" not in f"{config!r}{config.model_dump_json()}{config.policy.get_policy()!r}"


def test_whoever_reads_serves_status_can() -> None:
    """He makes the configuration anew from what he was told, by importing the policy and pickling it by value."""
    config = autoscaling_config(PLAN, POOL, address("redis://h/0"), generation="a")
    assert AutoscalingConfig(**json.loads(config.model_dump_json())) == config


def test_another_generation_is_another_policy() -> None:
    """Else Serve would keep the old one, with the old plan."""
    old, new = (autoscaling_config(PLAN, POOL, address("redis://h/0"), generation=name) for name in "ab")
    assert old != new


def test_a_fault_in_a_decision_changes_nothing(caplog: pytest.LogCaptureFixture, loops: dict[Any, ScalingLoop]) -> None:
    """The controller decides for other applications too."""
    stranger = PoolPlan("other@cpu", 0, 5)
    config = autoscaling_config(PLAN, stranger, address("redis://h/0"), generation="a")
    assert config.policy.get_policy()(context(config, running=3, target=3)) == (3, {})
    assert "no decision for other@cpu" in caplog.text


# -- words ------------------------------------------------------------------------------------------------


def test_each_change_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    lines = DecisionLog()
    with caplog.at_level(logging.INFO, "headrace.autoscaling"):
        for now_s, replicas in enumerate([1, 4, 4, 4, 2]):
            lines.note(now_s, [Decision("m@cpu", replicas, ("because",), before=1)])
    told = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["direction"], line["from"], line["to"]) for line in told] == [("up", 1, 4), ("down", 4, 2)]
    assert told[0]["reasons"] == ["because"]


def test_decisions_are_metrics() -> None:
    """What is wanted stands under one reason at a time."""
    meter = MemoryMeter()
    record, nothing = ScalingMeter(meter), Observation(0.0, {}, {})
    for replicas, cause in ((4, "backlog"), (4, "stale"), (2, "cool_down")):
        record(nothing, [Decision("m@cpu", replicas, (), before=1, cause=cause)])  # type: ignore[arg-type]
    assert meter.value("headrace_replicas_wanted", pool="m@cpu") == 2
    assert meter.value("headrace_replicas_wanted", pool="m@cpu", reason="stale") == 0
    assert meter.value("headrace_scaling_decisions_total", direction="up") == 1
    assert meter.value("headrace_scaling_decisions_total", direction="down") == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "labels", "words"),
    [
        (8, 0, {}, ""),
        (1, 1, {"kind": "gpu"}, ""),
        (1, 0, {"kind": "in(gpu, tpu)"}, ""),
        (1, 0, {"kind": "!gpu"}, ""),
        (9, 0, {}, "it asks for 9 CPU, and the most that a node has is 8"),
        (1, 2, {}, "it asks for 2 GPU, and the most that a node has is 1"),
        (8, 1, {}, "it asks for 8 CPU, and the most that a node has is 4"),
        (1, 1, {"kind": "!gpu"}, "it asks for 1 GPU, and no node has any"),
        (1, 0, {"kind": "tpu"}, "it asks for a node with the labels kind=tpu, and there is none"),
        (1, 0, {"kind": "!in(gpu,cpu)"}, "it asks for a node with the labels kind=!in(gpu,cpu), and there is none"),
    ],
)
def test_whether_a_node_can_hold_a_replica(cpus: float, gpus: float, labels: dict[str, str], words: str) -> None:
    nodes = Node.living(
        [
            {"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {"kind": "cpu"}},
            {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}, "Labels": {"kind": "gpu"}},
            {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}, "Labels": {}},
        ]
    )
    assert why_unplaceable(cpus, gpus, labels, nodes) == words
