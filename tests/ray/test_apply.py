"""`headrace apply` on a service that runs: what did not change goes on, what is exchanged loses no job."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from ray.serve.context import _get_global_client

from headrace import AsyncClient, Job, UnknownModelError
from headrace.cli.output import Exit
from headrace.keys import MODELS, keys_of
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.local import APP, LocalService
from headrace_cluster.rollout.change import ApplyError, Change, Plan
from headrace_cluster.rollout.removal import Removed
from headrace_cluster.rollout.running_service import RunningService
from support.command_line import HEADRACE
from support.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = {"cpus": 0.1}


def fragile(variant: str) -> dict[str, Any]:
    engine = {"kind": "custom", "target": "support.engines:FragileEngine", "options": {"variant": variant}}
    return {"engine": engine, "pools": [SMALL]}


def configuration(shared: dict[str, dict[str, Any]] | None = None, **models: dict[str, Any]) -> ServiceConfig:
    """Two models, and these besides or in their place; those of `shared` are hosted by one pool together."""
    hosted = {"steady": fragile("steady"), "fragile": fragile("one")} | models
    hosted |= {name: model | {"pools": [{"shared": "hosts"}]} for name, model in (shared or {}).items()}
    pools = {"hosts": SMALL | {"memory_bytes": 1 << 30}} if shared else {}
    return load_config({"models": hosted, "shared_pools": pools, "router": SMALL | {"drain_s": 10}})


def variant_of(config: ServiceConfig) -> str:
    """That of the model that is changed again and again."""
    engine = config.models["fragile"].engine
    assert engine.kind == "custom"
    return str(engine.options["variant"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service as `headrace serve` has it, with word left of where its Ray is."""
    folder = tmp_path_factory.mktemp("r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        with LocalService(configuration(), directory=folder / "d") as service:
            yield service


@pytest.fixture
def service(running: LocalService) -> RunningService:
    return RunningService(APP, _get_global_client())


@pytest.fixture
async def client(running: LocalService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(running.url) as connected:
        yield connected


def applied(service: RunningService, config: ServiceConfig, removed: Removed = Removed.REFUSE) -> Plan:
    change = Change(service, config, removed, timeout_s=120)
    plan = change.plan()
    change.apply(plan, lambda step: None)
    return plan


def command(*arguments: str | Path, **environment: str) -> tuple[int, dict[str, Any]]:
    line = [str(HEADRACE), "apply", *map(str, arguments), "--json"]
    ended = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1])


# -- as a tutorial --------------------------------------------------------------------------------------------------


def test_the_command_finds_the_service_and_changes_limits_in_place(running: LocalService, tmp_path: Path) -> None:
    """Nobody is exchanged for it."""
    file = tmp_path / "config.json"
    steady = fragile("steady") | {"limits": {"lane_capacity": 77}}
    file.write_text(configuration(steady=steady).model_dump_json(exclude_unset=True, exclude={"redis_url"}))
    before = running.counts()["steady"]["pid"]
    status, said = command(file, "--dry-run")
    change = {"path": "models.steady.limits.lane_capacity", "old": 1_000_000, "new": 77, "effect": "in place"}
    assert (status, said) == (Exit.DONE, {"dry_run": True, "changes": [change], "removed": {}})
    status, said = command(file, "--yes")
    assert (status, said["applied"], said["changes"]) == (Exit.DONE, True, [change])
    with redis.Redis.from_url(running.url) as direct:
        assert direct.hget(keys_of("steady").meta, "lane_capacity") == b"77"
    assert running.counts()["steady"]["pid"] == before


async def test_an_engine_is_exchanged_under_load(service: RunningService, client: AsyncClient) -> None:
    """Submitted is answered, each job once; by the old, then by the new; the other model's replica stays."""
    stop, variants, submitted = asyncio.Event(), Counter[str](), 0

    async def produce() -> None:
        nonlocal submitted
        while not stop.is_set():
            jobs = [Job(model="fragile", input="sleep:0.005") for _ in range(4)]
            submitted += len(jobs)
            async for result in client.map(jobs):
                result.unwrap()
                variants[result.variant] += 1

    pid = (await client.run(Job(model="steady", input=""), timeout_s=30)).unwrap()
    producing = asyncio.create_task(produce())
    await eventually(lambda: variants["one"])
    plan = await asyncio.to_thread(applied, service, configuration(fragile=fragile("two")))
    await eventually(lambda: variants["two"])
    stop.set()
    await producing
    effects = {change.path: change.effect for change in plan.diff.changes}
    assert effects["models.fragile.engine.options.variant"] == "new replicas"
    assert sum(variants.values()) == submitted
    audit = await client.audit("fragile")
    assert (audit.submitted, audit.finished, audit.lost, audit.doubled) == (submitted, submitted, 0, 0)
    assert pid == (await client.run(Job(model="steady", input=""), timeout_s=30)).unwrap()


async def test_a_model_comes_and_goes(service: RunningService, client: AsyncClient, running: LocalService) -> None:
    """Not while it has jobs, unless one says what becomes of them; then nothing of it stays."""
    with_it = configuration(fragile=fragile("two"), guest=fragile("guest"))
    await asyncio.to_thread(applied, service, with_it)
    receipts = await client.submit_many([Job(model="guest", input="sleep:2") for _ in range(2)])
    without = configuration(fragile=fragile("two"))
    with pytest.raises(ApplyError, match="guest has 2 jobs") as caught:
        await asyncio.to_thread(applied, service, without)
    assert caught.value.code == "jobs_waiting"
    receipts.append(await client.submit(Job(model="guest", input="it takes jobs still")))
    await asyncio.to_thread(applied, service, without, Removed.DRAIN)
    with pytest.raises(UnknownModelError):
        await client.submit(Job(model="guest", input="too late"))
    assert all([(await client.result(receipt, timeout_s=5)).ok for receipt in receipts])
    with redis.Redis.from_url(running.url) as direct:
        assert not direct.sismember(MODELS, "guest")
        left = [key.decode() for key in direct.scan_iter("hr:{guest}:*") if direct.ttl(key) == -1]
        assert left == []


# -- what goes wrong ------------------------------------------------------------------------------------------------


async def test_a_shared_pool_hosts_other_models_in_place(service: RunningService, client: AsyncClient) -> None:
    """One more, and another engine for the one that was there: the host is the process that it was."""
    one = configuration({"first": fragile("old")}, fragile=fragile("two"))
    await asyncio.to_thread(applied, service, one)
    before = await client.run(Job(model="first", input=""), timeout_s=60)
    two = configuration({"first": fragile("new"), "second": fragile("too")}, fragile=fragile("two"))
    await asyncio.to_thread(applied, service, two)
    first, second = [await client.run(Job(model=name, input=""), timeout_s=60) for name in ("first", "second")]
    await asyncio.to_thread(applied, service, configuration(fragile=fragile("two")))

    assert [result.variant for result in (before, first, second)] == ["old", "new", "too"]
    assert {result.unwrap() for result in (before, first, second)} == {before.unwrap()}


def test_an_invalid_file(tmp_path: Path) -> None:
    """It is refused by the key, before anybody is asked."""
    file = tmp_path / "config.json"
    file.write_text('{"models": {"m": {"engine": {"kind": "echo"}, "limit": {}}}}')
    status, said = command(file, "--yes")
    assert (status, said["error"]["code"]) == (Exit.USAGE, "config")
    assert "models.m.limit" in said["error"]["message"]


@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])
def test_nobody_is_there(tmp_path: Path, address: str) -> None:
    """A named error, with the next step."""
    file = tmp_path / "config.json"
    file.write_text('{"models": {"m": {"engine": {"kind": "echo"}}}}')
    status, said = command(file, "--yes", XDG_RUNTIME_DIR=str(tmp_path), RAY_ADDRESS=address)
    assert (status, said["error"]["code"]) == (Exit.UNAVAILABLE, "no_service")
    assert said["error"]["hint"].startswith("start one with `headrace serve")


@pytest.mark.long
async def test_what_cannot_run_is_taken_back(service: RunningService, client: AsyncClient) -> None:
    """The words are the replica's, and the old goes on."""
    broken = {"engine": {"kind": "custom", "target": "support.engines:NoSuchEngine"}, "pools": [SMALL]}
    before = await asyncio.to_thread(service.read)
    with pytest.raises(ApplyError, match="has no class NoSuchEngine") as caught:
        await asyncio.to_thread(applied, service, configuration(fragile=broken))
    assert caught.value.code == "rolled_back"
    after = await asyncio.to_thread(service.read)
    assert (after.generation, after.config) == (before.generation, before.config)
    result = await client.result(await client.submit(Job(model="fragile", input="fine")), timeout_s=30)
    assert (result.ok, result.variant) == (True, variant_of(before.config))


def test_two_at_once(service: RunningService, tmp_path: Path) -> None:
    """One wins, and the other is told."""
    file, before = tmp_path / "config.json", variant_of(service.read().config)
    config = configuration(fragile=fragile("three"))
    file.write_text(config.model_dump_json(exclude_unset=True, exclude={"redis_url"}))
    with service.locked():
        status, said = command(file, "--yes")
    assert (status, said["error"]["code"]) == (Exit.FAILED, "apply_in_progress")
    assert variant_of(service.read().config) == before
