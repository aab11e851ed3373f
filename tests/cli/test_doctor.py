"""`headrace doctor`: what it finds wrong, why that matters, and what it says to do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import yaml

from headrace import scripts
from headrace.cli.output import Exit
from headrace.doctor import Case, Diagnosis, Level, examine_keys, examine_redis, worst
from headrace.doctor.key_space import ModelState, judge_model
from headrace.doctor.server_health import ServerHealth, judge_health
from headrace.keys import GROUP, keys_of
from headrace.messages.job import PRIORITIES
from headrace.models.overview import LaneLoad, ModelOverview
from headrace.models.routers import RouterSign
from headrace_cluster.config.settings import load_config
from headrace_cluster.doctor.configuration import examine_config
from headrace_cluster.doctor.ray_cluster import DeploymentFacts, NodeFacts, RayFacts, examine_ray, judge_ray
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService
from support.command_line import Run
from support.service import PlainService
from support.tiny_model import write_tiny_model
from support.users import PASSWORD, make_users


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray may run on this machine is none of these tests' business."""
    monkeypatch.setattr("headrace_cluster.doctor.examine_ray", lambda address, config: [])


def of(found: list[Diagnosis], level: Level) -> list[str]:
    return [diagnosis.what for diagnosis in found if diagnosis.level is level]


# -- the command ----------------------------------------------------------------------------------------------------


async def test_a_service_that_is_well(headrace: Run, redis_url: str) -> None:
    """Nothing is an error; whatever is a warning says why, and what to do."""
    async with PlainService(redis_url, "echo"):
        await headrace("submit", "echo", "x")
        ran = await headrace("doctor", "--json")
        shown = await headrace("doctor")
    assert ran.status == shown.status == Exit.DONE
    findings = ran.last["findings"]
    assert {
        "subject": "keys",
        "level": "ok",
        "what": "1 models, 0 live jobs, 1 living routers",
        "why": "",
        "fix": "",
    } in findings
    assert all(finding["why"] and finding["fix"] for finding in findings if finding["level"] != "ok")
    assert "0 errors" in shown.out
    # The tests' server leaves writing to the operating system.
    assert "leaves writing to the operating system" in shown.out
    assert (await headrace("doctor", "--strict")).status == Exit.FAILED  # fmt: skip


async def test_a_server_that_is_away(headrace: Run, tmp_path: Path) -> None:
    """Said once, with what to type; never a password."""
    ran = await headrace("doctor", "--json", "-u", "redis://:s3cret@127.0.0.1:1")
    assert (ran.status, ran.last["worst"]) == (Exit.FAILED, "error")
    [finding] = ran.last["findings"]
    assert finding["fix"].startswith("redis-cli -u redis://***@127.0.0.1:1 PING")
    assert "s3cret" not in ran.out + ran.err
    assert (await headrace("doctor", "-u", "htp://x")).status == Exit.FAILED


async def test_a_configuration_says_which_redis(
    headrace: Run, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what that must keep."""
    monkeypatch.delenv("HEADRACE_REDIS_URL")
    file = tmp_path / "config.yaml"
    models = {"echo": {"engine": {"kind": "echo"}}}
    file.write_text(yaml.safe_dump({"redis_url": redis_url, "redis": {"durability": "always"}, "models": models}))
    ran = await headrace("doctor", file, "--json")
    assert ran.last["redis"] == redis_url
    [finding] = [finding for finding in ran.last["findings"] if finding["level"] == "error"]
    assert "always is asked for" in finding["what"]
    assert "CONFIG SET appendfsync always" in finding["fix"]


async def test_without_the_cluster_extra(headrace: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is looked at, and the rest is said not to have been."""
    monkeypatch.setattr("headrace.cli.doctor.entry_points", lambda group: [])
    ran = await headrace("doctor", "config.yaml", "--json")
    assert ran.status == Exit.DONE
    [finding] = [finding for finding in ran.last["findings"] if finding["subject"] == "config"]
    assert finding["fix"] == "pip install 'headrace[cluster]'"


# -- a server, judged -----------------------------------------------------------------------------------------------

WELL = ServerHealth(latency_s=0.0005, memory_used_bytes=10, memory_limit_bytes=100, clients=3, max_clients=1000)


@pytest.mark.parametrize(
    ("health", "level", "says", "fix"),
    [
        (replace(WELL, failed_writes=("append-only file",)), Level.ERROR, "could not write", "df -h"),
        (replace(WELL, delayed_fsyncs_per_min=7.0), Level.WARN, "waited for its disk 7.0 times", "LATENCY"),
        (replace(WELL, memory_used_bytes=85), Level.WARN, "uses 85% of maxmemory", "maxmemory"),
        (
            replace(WELL, memory_limit_bytes=0, memory_used_bytes=50, machine_bytes=100),
            Level.WARN,
            "has no maxmemory and uses 50%",
            "CONFIG SET maxmemory 50",
        ),
        (replace(WELL, evicted_keys=3), Level.ERROR, "has evicted 3 keys", "noeviction"),
        (replace(WELL, latency_s=0.03), Level.WARN, "takes 30.0 ms", "SLOWLOG"),
        (replace(WELL, latency_s=0.3), Level.ERROR, "takes 300.0 ms", "SLOWLOG"),
        (replace(WELL, skew_s=-4.0), Level.WARN, "has a clock 4.0 s behind", "set-ntp"),
        (replace(WELL, skew_s=4.0), Level.WARN, "has a clock 4.0 s ahead of", "set-ntp"),
        (replace(WELL, clients=900), Level.WARN, "900 of at most 1,000 connections", "CLIENT LIST"),
        (replace(WELL, open_to_all=True), Level.WARN, "lets anybody in", "headrace acl"),
        (replace(WELL, denials=2), Level.WARN, "has refused something", "ACL LOG"),
    ],
)
def test_what_is_wrong_with_a_server(health: ServerHealth, level: Level, says: str, fix: str) -> None:
    """Each thing by itself."""
    [found] = judge_health(health, secure=True, local=False)
    assert (found.level, says in found.what, fix in found.fix) == (level, True, True), found
    assert found.why


def test_a_server_that_is_well() -> None:
    """Nothing to say; on this machine neither TLS nor a password is missed."""
    assert list(judge_health(WELL, secure=True, local=False)) == []
    assert list(judge_health(replace(WELL, open_to_all=True), secure=False, local=True)) == []
    [found] = judge_health(WELL, secure=False, local=False)
    assert found.what == "is reached over the network without TLS"


async def test_what_a_real_server_says_of_its_troubles(own_server: EmbeddedServer) -> None:
    """Keys that were evicted, and a user who was refused something."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">x", "~*", "+ping")
        plain = redis.Redis.from_url(own_server.url.replace("unix://", "unix://plain:x@"))
        with plain, pytest.raises(redis.exceptions.NoPermissionError):
            plain.get("x")
        admin.config_set("maxmemory-policy", "allkeys-random")
        admin.config_set("maxmemory", str(int(cast(Any, admin.info())["used_memory"]) + 1_000_000))
        for n in range(200):
            admin.set(f"filler-{n}", "x" * 10_000, px=600_000)
    found = await examine_redis(own_server.url)
    assert any(what.startswith("has refused something to a user") for what in of(found, Level.WARN))
    errors = " ".join(of(found, Level.ERROR))
    assert "has evicted" in errors
    assert "evicts keys when memory is short" in errors


# -- keys -----------------------------------------------------------------------------------------------------------


def state(**fields: Any) -> ModelState:
    counts = {"submitted": 0, "live": 0, "ok": 0} | fields.pop("counts", {})
    reply = [part for name, count in counts.items() for part in (name.encode(), str(count).encode())]
    waiting = fields.pop("waiting", 0)
    lanes = tuple(
        LaneLoad(priority, live=waiting if n == 0 else 0, delivered=0) for n, priority in enumerate(PRIORITIES)
    )
    routers = fields.pop("routers", [RouterSign("r", True, 0)])
    return ModelState(ModelOverview("m", scripts.Audit.from_reply(reply), lanes), fields, routers)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "level", "says"),
    [
        (state(counts={"submitted": 5, "ok": 3, "live": 0}), Level.ERROR, "m: 2 jobs are lost and 0 answers doubled"),
        (state(counts={"submitted": 5, "ok": 6}), Level.ERROR, "m: 0 jobs are lost and 1 answers doubled"),
        (state(waiting=3, routers=[]), Level.ERROR, "m: 3 jobs wait, and no router reads them"),
        (state(waiting=3, routers=[RouterSign("r", False, 0)]), Level.ERROR, "m: 3 jobs wait"),
        (state(routers=[RouterSign("r", False, 7)]), Level.ERROR, "m: 7 jobs are in the hands of routers that died"),
        (state(waiting=90, lane_capacity="100"), Level.WARN, "of priority high hold 90 of 100 jobs"),
        (state(counts={"dead_letters": 2}), Level.WARN, "m: 2 dead letters"),
        (state(counts={"dead_letters": 9}, dead_letter_capacity="10"), Level.WARN, "9 dead letters, of at most 10"),
        (state(wire_version="9"), Level.WARN, "m is served in wire version 9"),
    ],
)
def test_what_is_wrong_with_a_model(found: ModelState, level: Level, says: str) -> None:
    """Each thing by itself."""
    [diagnosis] = judge_model(found)
    assert (diagnosis.level, says in diagnosis.what) == (level, True), diagnosis
    assert diagnosis.why
    assert diagnosis.fix


def test_a_model_that_is_well() -> None:
    """Also one whose routers died with nothing in their hands, while others live."""
    assert list(judge_model(state(waiting=3))) == []
    assert list(judge_model(state(routers=[RouterSign("a", False, 3), RouterSign("b", True, 0)]))) == []


async def test_the_keys_of_a_real_server(redis_url: str) -> None:
    """A lost job, jobs that nobody reads, jobs of a router that is gone, and a key that stands for ever."""
    async with HandService(redis_url, "m") as service:
        with redis.Redis.from_url(redis_url) as client:
            assert of(await examine_keys(redis_url), Level.ERROR) == []
            client.hincrby(keys_of("m").counters, "submitted", 1)
            client.set("hr:{gone}:leftover", "x")
            assert of(await examine_keys(redis_url), Level.ERROR) == ["m: 1 jobs are lost and 0 answers doubled"]
            [leftover] = of(await examine_keys(redis_url), Level.WARN)
            assert leftover.endswith("not on the permanent list: hr:{gone}:leftover")
            client.delete("hr:{gone}:leftover")
            client.hincrby(keys_of("m").counters, "submitted", -1)
            lane = keys_of("m").lanes[1]
            entry: Any = client.xadd(lane, {"not": "a job"})
            client.hincrby(keys_of("m").counters, "submitted", 1)
            assert of(await examine_keys(redis_url), Level.ERROR) == ["m: 1 jobs wait, and no router reads them"]
            client.xreadgroup(GROUP, "ghost", {lane: ">"})
            dead = "m: 1 jobs are in the hands of routers that died"
            assert of(await examine_keys(redis_url), Level.ERROR) == [dead]
            client.set(keys_of("m").heartbeat("ghost"), 1, px=60_000)
            assert of(await examine_keys(redis_url), Level.ERROR) == []
            client.xack(lane, GROUP, entry)
            client.xdel(lane, entry)
        assert service.model == "m"


async def test_a_monitor_sees_what_a_monitor_may(own_server: EmbeddedServer) -> None:
    """No keys are listed for him, and nothing he may not do spoils the rest."""
    with redis.Redis.from_url(own_server.url) as admin:
        make_users(admin)
    async with HandService(own_server.url, "m"):
        for user in ("monitor", "admin"):
            found = await examine_keys(own_server.url.replace("unix://", f"unix://{user}:{PASSWORD}@"))
            assert of(found, Level.OK) == ["1 models, 0 live jobs, 0 living routers"]
        found = await examine_keys(own_server.url.replace("unix://", f"unix://consumer:{PASSWORD}@"))
        assert "headrace acl monitor admin" in found[0].fix


# -- configuration and artifacts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from headrace_workers.compression.build import build_artifact

    folder = tmp_path_factory.mktemp("artifacts")
    build_artifact(write_tiny_model(folder / "plain"), folder / "tiny")
    return folder / "tiny"


def examined(tmp_path: Path, **engine: Any) -> list[Diagnosis]:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"engine": engine}}}))
    return examine_config(Case(config=file))[1]


def test_an_artifact_is_verified(artifact: Path, tmp_path: Path) -> None:
    """Every file by its hash; the variant is that of this node."""
    good = examined(tmp_path, model=str(artifact))
    assert worst(good) is Level.OK
    assert good[-1].what.endswith("files are as the manifest says; this node runs int8")
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    file = copy / "config.json"
    file.write_text(file.read_text().replace("{", "[", 1))
    [bad] = [found for found in examined(tmp_path, model=str(copy)) if found.level is Level.ERROR]
    assert bad.what.startswith(f"m: {file} is not the file")
    assert examined(tmp_path, model=str(artifact), variant="int2")[-1].level is Level.ERROR


@pytest.mark.parametrize(
    ("model", "level", "says"),
    [
        ("/no/such/place", Level.ERROR, "there is nothing at /no/such/place"),
        ("https://example.com/minilm", Level.WARN, "its URL names no hash"),
        (f"https://example.com/minilm#sha256={'0' * 64}", Level.OK, "is fetched by its hash"),
    ],
)
def test_a_model_by_its_place(model: str, level: Level, says: str, tmp_path: Path) -> None:
    """Nothing is fetched."""
    found = examined(tmp_path, model=model)[-1]
    assert (found.level, says in found.what) == (level, True), found


def test_a_configuration_with_a_mistake(tmp_path: Path) -> None:
    """The key is named."""
    [found] = examined(tmp_path, kind="echo", modle="x")
    assert found.level is Level.ERROR
    assert "models.m.engine.modle" in found.what


def test_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning: it may be on another node."""
    monkeypatch.setattr("headrace_cluster.doctor.configuration._device", lambda: "cpu")
    file = tmp_path / "config.yaml"
    file.write_text("models: {m: {engine: {kind: echo}, pools: [{name: fast, gpus: 1}]}}")
    [_, found] = examine_config(Case(config=file))[1]
    assert (found.subject, found.level) == ("gpu", Level.WARN)
    assert "m@fast want a GPU" in found.what


# -- Ray ------------------------------------------------------------------------------------------------------------


def nodes(*sizes: tuple[float, float]) -> list[NodeFacts]:
    return [NodeFacts(f"node-{n}", True, cpus, gpus) for n, (cpus, gpus) in enumerate(sizes)]


def test_replicas_that_fit() -> None:
    """One node is named, and no warning."""
    config = load_config({"models": {"m": {"engine": {"kind": "echo"}, "pools": [{"cpus": 2, "replicas": 2}]}}})
    [found] = judge_ray(RayFacts("2.60.0", nodes((4, 0), (4, 0))), config)
    assert found.what == "Ray 2.60.0: 2 nodes, 8 cores, 0 GPUs"


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ({"cpus": 8}, ["no node has the 8 cores", "take 9 cores"]),
        ({"cpus": 2, "replicas": 5}, ["take 11 cores and 0 GPUs, more than there are"]),
        ({"cpus": 1, "gpus": 1}, ["no node has the 1 cores and 1 GPUs", "and 1 GPUs, more than there are"]),
    ],
)
def test_replicas_that_do_not_fit(pool: dict[str, Any], says: list[str]) -> None:
    """On one node, or all together."""
    config = load_config({"models": {"m": {"engine": {"kind": "echo"}, "pools": [pool]}}})
    dead = NodeFacts("dead", alive=False, cpus=64, gpus=8)
    _, *found = judge_ray(RayFacts("2.60.0", [*nodes((4, 0), (4, 0)), dead]), config)
    assert len(found) == len(says)
    for diagnosis, text in zip(found, says, strict=True):
        assert (diagnosis.level, text in diagnosis.what) == (Level.WARN, True), diagnosis


def test_deployments_that_are_ill() -> None:
    """With what Serve says of them, cut short."""
    deployments = [
        DeploymentFacts("m@cpu", "UNHEALTHY", "line one\nline two" + "x" * 1000),
        DeploymentFacts("router", "UPDATING"),
        DeploymentFacts("n@cpu", "HEALTHY"),
    ]
    _, ill, passing = judge_ray(RayFacts("2.60.0", nodes((4, 0)), deployments))
    assert (ill.level, passing.level) == (Level.ERROR, Level.WARN)
    assert ill.what.startswith("m@cpu is UNHEALTHY: line one line two")
    assert len(ill.what) < 400


def test_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: known at once, and no Ray is started."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody is there")))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    [found] = examine_ray("10.0.0.1:6379", None)
    assert (found.level, found.what) == (Level.WARN, "no Ray cluster is reachable at 10.0.0.1:6379: nobody is there")
