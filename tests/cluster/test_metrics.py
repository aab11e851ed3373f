"""What a router and its replicas record of the jobs that pass through them, into a meter in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from headrace import AsyncClient, Job
from headrace.tasks import end_task
from headrace.telemetry.metric_names import METRICS, Kind
from headrace_cluster.observability.router_exporter import RouterExporter
from headrace_cluster.observability.router_watch import RouterWatch
from headrace_workers.generation.pages import PagePool
from headrace_workers.replicas.watch import ReplicaWatch
from headrace_workers.telemetry.metering import MemoryMeter, RayMeter, meter_for
from support.bad_days import GatedEngine
from support.decoders import FakeDecoder
from support.routing import MODEL, jobs, outputs_of, policy
from support.service import PlainService
from support.waiting import eventually


@pytest.fixture
def meter() -> MemoryMeter:
    return MemoryMeter()


# -- the catalogue --------------------------------------------------------------------------------------------------


def test_names_are_prometheus_names() -> None:
    """Counters end in `_total`, and whatever is measured in a unit has it in its name."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"headrace_[a-z0-9_]+", name)
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.unit not in {"seconds", "tokens"} or metric.unit in name
        assert metric.exported == f"ray_{name}"
        assert metric.help.endswith(".")


def test_histograms_have_buckets_in_order() -> None:
    """And nothing else has any."""
    for metric in METRICS.values():
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(bound > 0 for bound in metric.buckets)


def test_nothing_is_recorded_that_is_not_declared(meter: MemoryMeter) -> None:
    """Neither a name nor a label, and each only as what it is."""
    with pytest.raises(KeyError):
        meter.add("headrace_surprises_total")
    with pytest.raises(ValueError, match="labels"):
        meter.add("headrace_read_jobs_total")
    with pytest.raises(ValueError, match="counter"):
        meter.set("headrace_read_jobs_total", 1, model="m")


def test_without_ray_nothing_is_recorded_anywhere() -> None:
    """A replica or a router can be used without it."""
    meter = meter_for(enabled=False)
    meter.add("headrace_read_jobs_total", 3, model="m")


class _Recorded(RayMeter):
    """Ray's meter, with lists in the place of what Ray exports."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def _metric(self, name: str) -> Any:
        def observe(value: float, labels: dict[str, str]) -> None:
            self.values.append((name, value, labels))

        return SimpleNamespace(observe=observe)


def test_values_are_recorded_many_at_once() -> None:
    """Which is far cheaper; what is left is recorded when somebody asks, and nothing twice."""
    meter = _Recorded()
    for value in range(63):
        meter.observe("headrace_run_seconds", value, model="a", pool="cpu")
    meter.observe("headrace_run_seconds", 5, model="b", pool="cpu")
    assert meter.values == []
    meter.observe("headrace_run_seconds", 63, model="a", pool="cpu")
    assert meter.values == [("headrace_run_seconds", value, {"model": "a", "pool": "cpu"}) for value in range(64)]
    del meter.values[:]
    meter.flush()
    meter.flush()
    assert meter.values == [("headrace_run_seconds", 5, {"model": "b", "pool": "cpu"})]


# -- batches ----------------------------------------------------------------------------------------------------------


async def test_batches_are_measured(redis_url: str, meter: MemoryMeter) -> None:
    """Each once, by the router and by the replica."""
    watched = {"watch": RouterWatch(MODEL, meter), "replica_watch": ReplicaWatch(meter=meter)}
    async with PlainService(redis_url, MODEL, **watched) as service, AsyncClient(redis_url) as client:  # type: ignore[arg-type]
        assert await outputs_of(client, jobs(300)) == list(range(300))
        batches = service.router.counts.batches
        await eventually(lambda: len(meter.values("headrace_run_seconds")) == batches)
        service.router.watch.flush()

    assert sum(meter.values("headrace_batch_jobs")) == 300
    assert meter.value("headrace_batches_total", model=MODEL, pool="") == batches
    assert meter.value("headrace_tokens_total") == sum(meter.values("headrace_batch_tokens")) == 300
    for name in ("headrace_form_seconds", "headrace_run_seconds", "headrace_answer_seconds"):
        assert len(meter.values(name)) == batches
        assert min(meter.values(name)) >= 0
    waits = meter.values("headrace_wait_seconds")
    assert batches <= len(waits) <= 4 * batches
    assert max(waits) < 60


def test_padding_that_was_avoided(meter: MemoryMeter) -> None:
    """All jobs of a batch would have been as long as its longest; one that never ran needs none."""
    watch = RouterWatch(MODEL, meter)
    watch.came_back("gpu/abc", [10, 4, 0, 1], 0.5)
    watch.flush()
    watch.flush()
    assert meter.value("headrace_padding_tokens_avoided_total", model=MODEL) == 3 * 10 - 15
    assert meter.value("headrace_tokens_total", model=MODEL, pool="gpu") == 15


async def test_generations_are_measured(redis_url: str, meter: MemoryMeter) -> None:
    """Until the first token, and between two of them."""
    watched = {"watch": RouterWatch(MODEL, meter), "replica_watch": ReplicaWatch("gpu", meter)}
    engine = FakeDecoder(slots=4)
    chosen = policy(jobs_per_replica=4)
    async with PlainService(redis_url, MODEL, engine, policy=chosen, **watched) as service:  # type: ignore[arg-type]
        async with AsyncClient(redis_url) as client:
            results = [
                await client.run(Job(model=MODEL, input=f"prompt {n}", params={"max_tokens": 5}), timeout_s=10)
                for n in range(3)
            ]
        service.replicas["replica-0"].say_how_busy()  # type: ignore[attr-defined]

    service.router.watch.flush()
    assert all(result.ok for result in results)
    assert len(meter.values("headrace_first_token_seconds")) == 3
    assert len(meter.values("headrace_inter_token_seconds")) == 3
    assert meter.value("headrace_running_sequences", model=MODEL) == 0
    assert meter.value("headrace_tokens_total", model=MODEL) > 15
    assert meter.value("headrace_batches_total", model=MODEL) == 3


# -- what is exported now and then ------------------------------------------------------------------------------------


def test_pages_of_keys_and_values(meter: MemoryMeter) -> None:
    """Each is counted once: in use, kept because somebody may ask for its beginning again, or free."""
    pool = PagePool(8)
    held = pool.allocate(3)
    pool.publish(b"a digest", held[0])
    pool.release(held[:1])
    ReplicaWatch(meter=meter).generating("m", 2, pool)

    pages = {state: meter.value("headrace_kv_pages", state=state) for state in ("used", "cached", "free")}
    assert pages == {"used": 2, "cached": 1, "free": 5}
    assert meter.value("headrace_running_sequences") == 2


@asynccontextmanager
async def _running(exporter: RouterExporter) -> AsyncIterator[None]:
    task = asyncio.create_task(exporter.run())
    try:
        yield
    finally:
        await end_task(task)


def _exporter(meter: MemoryMeter, url: str, service: PlainService) -> RouterExporter:
    return RouterExporter(
        meter, url, {MODEL: service.router}, lease_held=lambda: service.lease.held, asks_redis=lambda: True
    )


async def test_counts_are_exported_as_what_they_grew_by(redis_url: str, meter: MemoryMeter) -> None:
    """However often they are exported."""
    async with PlainService(redis_url, MODEL) as service, AsyncClient(redis_url) as client:
        exporter = _exporter(meter, redis_url, service)
        exporter.export()
        await outputs_of(client, jobs(50))
        exporter.export()
        await outputs_of(client, [Job(model=MODEL, input=n) for n in range(20)])
        await eventually(lambda: service.router.counts.answered == 70)
        exporter.export()
        exporter.export()

    assert meter.value("headrace_read_jobs_total", model=MODEL) == 70
    assert meter.value("headrace_answered_jobs_total") == 70
    assert meter.value("headrace_replicas", model=MODEL, pool="") == 1
    assert meter.value("headrace_lease_held") == 1
    assert meter.value("headrace_router_held_jobs") == 0


async def test_what_lies_in_redis_is_exported(redis_url: str, meter: MemoryMeter) -> None:
    """The backlog by priority, its age, and the audit."""
    engine = GatedEngine()
    async with PlainService(redis_url, MODEL, engine) as service, AsyncClient(redis_url) as client:
        receipts = await client.submit_many(
            Job(model=MODEL, input=n, priority=("high", "low")[n % 2]) for n in range(2_000)
        )
        await eventually(lambda: service.router.counts.dispatched > 0)
        async with _running(_exporter(meter, redis_url, service)):
            await eventually(lambda: "headrace_oldest_waiting_seconds" in meter.names)
        engine.open()
        for receipt in receipts:
            await client.result(receipt, timeout_s=30)

    waiting = meter.value("headrace_waiting_jobs", model=MODEL)
    assert waiting + meter.value("headrace_delivered_jobs") == meter.value("headrace_live_jobs") == 2_000
    assert meter.value("headrace_waiting_jobs", priority="low") > 0
    assert meter.value("headrace_waiting_jobs", priority="normal") == 0
    assert 0 < meter.value("headrace_oldest_waiting_seconds") < 60
    assert meter.value("headrace_audit_difference_jobs") == 0
    assert meter.value("headrace_redis_latency_seconds") > 0
