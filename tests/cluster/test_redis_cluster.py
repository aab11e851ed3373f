"""A service over a Redis Cluster of three masters: models in different slots, and slots that move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from headrace import AsyncClient, ClientSettings, Job, RedisRoleError, RedisUnavailableError, ResultGoneError
from headrace.inboxes.lookup import read_records
from headrace.keys import MODELS, keys_of
from headrace.models.overview import read_overviews
from headrace.models.shards import shard_names
from headrace.server.check import check_server
from headrace.server.cluster_client import declared, key_of
from headrace.server.connection import commands, execute, execute_near, execute_together, masters
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.redis_cluster import RedisCluster, free_ports, slot_of
from support.service import PlainService
from support.users import PASSWORD, make_users, refusals
from support.waiting import eventually

QUICK = ClientSettings(command_timeout_s=2, retries=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


@pytest.fixture(scope="module")
def models(cluster: RedisCluster) -> list[str]:
    """One model for each master."""
    found: dict[int, str] = {}
    n = 0
    while len(found) < len(cluster.servers):
        found.setdefault(cluster.owner(slot_of(f"model-{n}")), f"model-{n}")
        n += 1
    return [found[node] for node in sorted(found)]


@pytest.fixture
async def services(cluster: RedisCluster, models: list[str]) -> AsyncIterator[list[PlainService]]:
    """A router and a replica for each model; the cluster is emptied first."""
    for node in cluster.nodes:
        node.flushall()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(PlainService(cluster.url, model)) for model in models]


# -- everything works ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("services")
async def test_jobs_of_models_on_different_masters(cluster: RedisCluster, models: list[str]) -> None:
    """One client maps over all of them, and the audit of each is exact."""
    async with AsyncClient(cluster.url) as client:
        assert await client.models() == sorted(models)
        jobs = [Job(model=models[n % 3], input=n) for n in range(300)]
        assert [result.unwrap() async for result in client.map(jobs)] == list(range(300))
        await client.ping()
        for model in models:
            audit = await client.audit(model)
            assert (audit.submitted, audit.ok, audit.live, audit.lost, audit.doubled) == (100, 100, 0, 0, 0)


async def test_one_model_on_several_masters(cluster: RedisCluster) -> None:
    """Its shards fall on different masters; the producer names the model, and the audit is of all of them."""
    policy, names = RoutingPolicy(shards=6, block_ms=50), shard_names("hot", 6)
    assert len({cluster.owner(slot_of(name)) for name in names}) == len(cluster.servers)
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(PlainService(cluster.url, name, policy=policy))
        client = await stack.enter_async_context(AsyncClient(cluster.url))
        jobs = [Job(model="hot", input=n) for n in range(300)]
        assert [result.unwrap() async for result in client.map(jobs)] == list(range(300))
        audit = await client.audit("hot")
        assert (audit.submitted, audit.ok, audit.live, audit.lost, audit.doubled) == (300, 300, 0, 0, 0)


@pytest.mark.usefixtures("services")
async def test_one_job_asked_after_in_every_way(cluster: RedisCluster, models: list[str]) -> None:
    """Status, result, an inbox of its own, and trimming."""
    async with AsyncClient(cluster.url) as client:
        for model in models:
            receipt = await client.submit(Job(model=model, input="x", inbox="mine", id="job-1"))
            assert (await client.result(receipt, timeout_s=10)).unwrap() == "x"
            assert (await client.status(receipt)).state == "ok"
            results = [result async for result in client.results("mine", model=model, idle_s=0.05)]
            assert [result.unwrap() for result in results] == ["x"]
            assert await client.trim("mine", model=model, through=results[0].cursor) == 1


@pytest.mark.usefixtures("services")
async def test_many_models_at_one_glance(cluster: RedisCluster, models: list[str]) -> None:
    """The overview asks every master at once; records of a model are looked up together."""
    async with AsyncClient(cluster.url) as client:
        for model in models:
            await client.run(Job(model=model, input="x", id="job-1"), timeout_s=10)
    redis = commands(cluster.url)
    try:
        overviews = await read_overviews(redis, models)
        records = [await read_records(redis, model, ["job-1", "job-2"]) for model in models]
    finally:
        await redis.aclose()
    assert [(overview.model, overview.audit.ok) for overview in overviews] == [(model, 1) for model in models]
    assert [[record is None for record in of_model] for of_model in records] == [[False, True]] * 3


@pytest.mark.usefixtures("services")
async def test_all_keys_of_a_model_lie_on_one_master(cluster: RedisCluster, models: list[str]) -> None:
    """And nothing else does, but the list of models, which lies somewhere."""
    async with AsyncClient(cluster.url) as client:
        await client.submit_many([Job(model=model, input=n) for model in models for n in range(5)])
        await eventually(lambda: all_ended(client, models))
    for n, model in enumerate(models):
        of_models = [key for key in cluster.keys(n) if key != MODELS]
        assert of_models
        assert all(key.startswith(keys_of(model).prefix) for key in of_models)


async def all_ended(client: AsyncClient, models: list[str]) -> bool:
    return not any([(await client.audit(model)).live for model in models])


async def test_a_job_is_on_the_disk_of_its_master(cluster: RedisCluster, services: list[PlainService]) -> None:
    """The wait for the disk goes to the node that has the job."""
    for node in cluster.nodes:
        node.config_set("appendfsync", "always")
    try:
        async with AsyncClient(cluster.url, settings=ClientSettings(durable="fsynced")) as client:
            for service in services:
                job = Job(model=service.router.model, input="safe")
                assert (await client.run(job, timeout_s=10)).unwrap() == "safe"
    finally:
        for node in cluster.nodes:
            node.config_set("appendfsync", "no")


async def test_users_with_no_more_rights_than_they_need(cluster: RedisCluster, models: list[str]) -> None:
    """What a cluster asks of its clients besides is among them: none of its nodes refuses anything."""
    for node in cluster.nodes:
        node.flushall()
        node.acl_log_reset()
        make_users(node)
    worker, producer = (cluster.url.replace("://", f"://{user}:{PASSWORD}@") for user in ("worker", "producer"))
    async with PlainService(worker, models[0]), PlainService(worker, models[1]), AsyncClient(producer) as client:
        jobs = [Job(model=models[n % 2], input=n) for n in range(100)]
        assert [result.unwrap() async for result in client.map(jobs)] == list(range(100))
        assert await client.models() == sorted(models[:2])
        cluster.begin_move(slot_of(models[2]), 0)
        with pytest.raises(ResultGoneError):  # of which the node that the slot moves to knows, if any does
            await client.status("nowhere", model=models[2])
        cluster.give_up_move(slot_of(models[2]))
    assert [refusals(node) for node in cluster.nodes] == [[], [], []]


# -- slots that move -------------------------------------------------------------------------------------------------


async def test_a_model_moves_to_another_master_under_load(
    cluster: RedisCluster, models: list[str], services: list[PlainService]
) -> None:
    """There and back, while jobs are submitted and answered: none is lost, none doubled, all are answered."""
    model = models[0]
    home = cluster.owner(slot_of(model))
    async with AsyncClient(cluster.url) as client:
        running = asyncio.create_task(echo_until_told(client, model, stop := asyncio.Event()))
        try:
            for to in (1 if home != 1 else 2, home):
                done = services[0].router.counts.answered
                await asyncio.to_thread(cluster.move, slot_of(model), to)
                await eventually(lambda done=done: services[0].router.counts.answered > done + 100, within_s=30)  # type: ignore[misc]
                assert cluster.owner(slot_of(model)) == to
        finally:
            stop.set()
        answered = await running
        audit = await client.audit(model)
    assert answered > 200
    assert (audit.submitted, audit.ok, audit.live, audit.lost, audit.doubled) == (answered, answered, 0, 0, 0)


async def echo_until_told(client: AsyncClient, model: str, stop: asyncio.Event) -> int:
    """Run jobs one hundred at a time; a move is waited out, and a batch of jobs repeated under its ids."""
    count = 0
    while not stop.is_set():
        jobs = [Job(model=model, input=n) for n in range(count, count + 100)]
        while True:
            try:
                results = [result async for result in client.map(jobs)]
                break
            except RedisUnavailableError:
                await asyncio.sleep(0.05)
        assert [result.unwrap() for result in results] == list(range(count, count + 100))
        count += 100
    return count


async def test_nothing_is_done_by_halves_while_a_slot_is_on_its_way(
    cluster: RedisCluster, models: list[str], services: list[PlainService]
) -> None:
    """A script is told to try again, whichever of the model's keys have gone ahead; afterwards all is as before."""
    model, keys = models[1], keys_of(models[1])
    slot, source = slot_of(model), cluster.owner(slot_of(model))
    to = (source + 1) % 3
    async with AsyncClient(cluster.url, settings=QUICK) as client:
        await client.run(Job(model=model, input="before"), timeout_s=10)
        await services[1].__aexit__(None, None, None)
        for gone_ahead in ([], [keys.meta], [keys.counters, keys.lanes[4]]):
            cluster.begin_move(slot, to)
            cluster.move_keys(slot, to, [name.encode() for name in gone_ahead])
            with pytest.raises(RedisUnavailableError):
                await client.submit(Job(model=model, input="now"))
            there = {name.decode() for name in cluster.keys_in(to, slot)}
            assert there == set(gone_ahead)
            cluster.move_keys(slot, to)
            cluster.end_move(slot, to)
            source, to = to, source
            assert (await client.audit(model)).submitted == 1
        receipt = await client.submit(Job(model=model, input="after"))
        services[1] = PlainService(cluster.url, model)
        async with services[1]:
            assert (await client.result(receipt, timeout_s=10)).unwrap() == "after"
        if source != cluster.owner(slot):
            cluster.move(slot, source)


async def test_a_map_that_is_out_of_date(cluster: RedisCluster, models: list[str]) -> None:
    """A node that no longer has a slot says who does; that goes for requests sent together, too."""
    model = models[2]
    slot, home = slot_of(model), cluster.owner(slot_of(model))
    redis = commands(cluster.url)
    try:
        record = keys_of(model).record("moved")
        await execute(redis, "SET", record, "1", "EX", 60)
        for to in ((home + 1) % 3, home):
            cluster.move(slot, to)
            others = [("GET", keys_of(name).record("moved")) for name in models]
            assert await execute_together(redis, others) == [None, None, b"1"]
            cluster.begin_move(slot, home if to != home else (home + 1) % 3)
            # Not there (yet): the node sends on to where it may be by now.
            assert await execute(redis, "GET", keys_of(model).record("nowhere")) is None
            cluster.give_up_move(slot)
    finally:
        await redis.aclose()


# -- masters that die ------------------------------------------------------------------------------------------------


async def test_a_master_that_dies_and_comes_back(
    cluster: RedisCluster, models: list[str], services: list[PlainService]
) -> None:
    """Models of the others go on; its own wait, and nothing that was acknowledged is lost."""
    victim = cluster.servers[2]
    cluster.nodes[2].config_set("appendfsync", "always")
    async with AsyncClient(cluster.url) as client:
        before = [await client.submit(Job(model=models[2], input=n)) for n in range(20)]
        victim.kill()
        assert (await client.run(Job(model=models[0], input="elsewhere"), timeout_s=10)).ok
        async with AsyncClient(cluster.url, settings=QUICK) as hasty:
            with pytest.raises(RedisUnavailableError):
                await hasty.submit(Job(model=models[2], input="x"))
        victim.start()  # not on another thread: the kernel would kill it with that
        await eventually(lambda: takes_jobs(client, models[2]))
        results = [await client.result(receipt, timeout_s=20) for receipt in before]
        assert [result.unwrap() for result in results] == list(range(20))
    assert services[2].router.counts.answered >= 1


async def takes_jobs(client: AsyncClient, model: str) -> bool:
    """A node that comes back says for two seconds that the cluster is down."""
    try:
        return (await client.run(Job(model=model, input="again"), timeout_s=20)).ok
    except RedisUnavailableError:
        return False


async def test_none_of_the_nodes_is_there() -> None:
    """As with any server that is away."""
    async with AsyncClient("redis+cluster://:secret@localhost:1,localhost:2", settings=QUICK) as client:
        with pytest.raises(RedisUnavailableError, match=r"reaching Redis at redis\+cluster://\*\*\*@localhost:1"):
            await client.ping()


# -- judging and routing ---------------------------------------------------------------------------------------------


async def test_all_masters_are_judged(cluster: RedisCluster) -> None:
    """What is wrong with one of them counts, and is told once."""
    facts, findings = await check_server(cluster.url)
    assert facts.mode == "cluster"
    assert [finding for finding in findings if "operating system" in finding.problem]
    assert len(set(findings)) == len(findings)


async def test_the_wrong_kind_of_url(cluster: RedisCluster) -> None:
    """A cluster as if it were one server, and one server as if it were a cluster: each error names the right URL."""
    port = cluster.servers[0].port
    with pytest.raises(RedisRoleError, match=r"is a node of a cluster; name it as redis\+cluster://"):
        await check_server(f"redis://127.0.0.1:{port}")
    with EmbeddedServer(port=free_ports(1)[0], die_with_parent=True) as single:
        refusal = pytest.raises(RedisRoleError, match="the server is no cluster; name it as redis://")
        with refusal:
            await check_server(f"redis+cluster://127.0.0.1:{single.port}")


async def test_what_names_no_key_goes_where_it_makes_sense(cluster: RedisCluster, models: list[str]) -> None:
    """The clock is that of the model's node; INFO is of the master that started last."""
    redis = commands(cluster.url)
    try:
        assert len(await execute_near(redis, keys_of(models[0]).prefix, "TIME")) == 2
        assert "uptime_in_seconds" in await execute(redis, "INFO", "server")
        assert len(await masters(redis)) == 3
    finally:
        await redis.aclose()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("GET", "k"), "k"),
        (("EVALSHA", "sha", 1, "k", "a"), "k"),
        (("XREADGROUP", "GROUP", "g", "me", "COUNT", 1, "BLOCK", 5, "STREAMS", "k", "k2", ">", ">"), "k"),
        (("XREAD", "COUNT", 1, "STREAMS", "k", "0"), "k"),
        (("XGROUP CREATE", "k", "g", "0", "MKSTREAM"), "k"),
        (("XGROUP", "CREATE", "k", "g", "0"), "k"),
        (("XINFO", "CONSUMERS", "k", "g"), "k"),
        (("XPENDING", "k", "g"), "k"),
        (("TIME",), None),
        (("SCRIPT LOAD", "return 1"), None),
        (("CONFIG GET", "save"), None),
    ],
)
def test_where_a_command_goes(words: tuple[str | int, ...], key: str | None) -> None:
    """To the node that has its key."""
    assert key_of(words) == key


def test_the_keys_that_a_script_declares() -> None:
    """One that always stands and one that never does, so that a half-moved slot is told from a whole one."""
    prefix = keys_of("m").prefix
    assert declared(("EVALSHA", "sha", 1, prefix, "a")) == ("EVALSHA", "sha", 2, prefix, keys_of("m").meta, "a")
    assert declared(("GET", "k")) == ("GET", "k")
