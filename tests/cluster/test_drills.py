"""Recovery drills: what an operator does to Redis, or has done to him, while jobs run. Nothing is lost or doubled.

docs/runbook.md and docs/durability.md tell people to do these things; here they are done to a real server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from headrace import AsyncClient, ClientSettings, Job, RedisUnavailableError
from headrace.doctor import Level, examine_redis
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.routing import RoutingPolicy
from support.bad_days import SlowEngine
from support.certificates import Authority
from support.redis_cluster import free_ports
from support.service import PlainService
from support.tls_front import TlsFront
from support.waiting import eventually

MODEL = "m"
PATIENT = ClientSettings(retries=20)
AT_ONCE = {"hz": "100", "repl-diskless-sync-delay": "0"}
POLICY = RoutingPolicy(block_ms=50, forming=FormingPolicy(max_jobs=8))


def jobs(count: int) -> list[Job]:
    return [Job(model=MODEL, input=[n, "x" * 200], id=f"job-{n}") for n in range(count)]


@asynccontextmanager
async def under_load(
    url: str, count: int, *, ahead: bool = False, client_url: str | None = None
) -> AsyncIterator[tuple[PlainService, asyncio.Task[list[int]]]]:
    """A service that is in the middle of so many jobs; at the end each of them has one answer, and nothing is lost.

    Args:
        url: of the server, for the service.
        count: how many jobs.
        ahead: whether all of them are handed over before, so that the producer only waits for answers.
        client_url: of the server, for the producer, if it reaches it otherwise.
    """
    engines = SlowEngine(0.004), SlowEngine(0.004)
    async with (
        PlainService(url, MODEL, *engines, policy=POLICY) as service,
        AsyncClient(client_url or url, settings=PATIENT) as client,
    ):

        async def produce() -> list[int]:
            if not ahead:
                return [result.unwrap()[0] async for result in client.map(jobs(count), in_flight=64)]
            receipts = await client.submit_many(jobs(count))
            return [(await client.result(receipt, timeout_s=60)).unwrap()[0] for receipt in receipts]

        producing = asyncio.create_task(produce())
        await eventually(lambda: service.router.counts.answered > count // 5)
        yield service, producing
        assert await asyncio.wait_for(producing, 60) == list(range(count))
        audit = await client.audit(MODEL)
        assert (audit.submitted, audit.ok, audit.live, audit.lost, audit.doubled) == (count, count, 0, 0, 0)


def _more_answers(service: PlainService) -> Callable[[], bool]:
    before = service.router.counts.answered
    return lambda: service.router.counts.answered > before


# -- Redis is moved -------------------------------------------------------------------------------------------------


def offset(client: redis.Redis) -> int:
    info: Any = client.info("replication")
    return int(info["master_repl_offset"] if info["role"] == "master" else info["slave_repl_offset"])


def linked(client: redis.Redis) -> bool:
    info: Any = client.info("replication")
    return bool(info.get("master_link_status") == "up")


async def test_redis_is_moved_to_another_server() -> None:
    """A replica is fed, writes are paused until it has all, it is promoted, and the name leads to it."""
    [old_port, new_port] = free_ports(2)
    name = Path(tempfile.mkdtemp(prefix="headrace-drill-")) / "redis.sock"
    with (
        EmbeddedServer(fsync="always", port=old_port, die_with_parent=True, options=AT_ONCE) as old,
        EmbeddedServer(fsync="always", port=new_port, die_with_parent=True, options=AT_ONCE) as new,
        redis.Redis.from_url(old.url) as at_old,
        redis.Redis.from_url(new.url) as at_new,
    ):
        name.symlink_to(old.socket)
        at_new.replicaof("127.0.0.1", str(old_port))
        await eventually(lambda: linked(at_new))
        async with under_load(f"unix://{name}", 1500) as (service, _producing):
            at_old.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
            await eventually(lambda: offset(at_new) >= offset(at_old))
            at_new.replicaof("NO", "ONE")
            (name.parent / "next").symlink_to(new.socket)
            (name.parent / "next").replace(name)
            before = service.router.counts.answered
            old.kill()
            await eventually(lambda: service.router.counts.answered > before)
    shutil.rmtree(name.parent)


async def test_redis_is_moved_with_its_file() -> None:
    """Stopped here, its folder copied, started there: on another machine it would be the same."""
    name = Path(tempfile.mkdtemp(prefix="headrace-drill-")) / "redis.sock"
    there = Path(tempfile.mkdtemp(prefix="headrace-there-"))
    new = EmbeddedServer(there, fsync="always", die_with_parent=True)
    with ExitStack() as stack, EmbeddedServer(name.parent / "here", fsync="always", die_with_parent=True) as old:
        stack.callback(new.stop)
        name.symlink_to(old.socket)
        async with under_load(f"unix://{name}", 1000) as (service, _producing):
            await asyncio.to_thread(old.stop)
            await eventually(lambda: not service.router.reachable)
            shutil.copytree(old.directory / "appendonlydir", there / "appendonlydir")
            await asyncio.to_thread(new.start)
            (name.parent / "next").symlink_to(new.socket)
            (name.parent / "next").replace(name)
            await eventually(lambda: service.router.reachable)
    shutil.rmtree(name.parent)
    shutil.rmtree(there)


# -- its disk is full -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-disk-"))
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "headrace", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk has no end")


async def test_the_disk_is_full(small_disk: Path) -> None:
    """Writes are refused (MISCONF), everybody waits, and goes on when there is room; the doctor says what it is."""
    with EmbeddedServer(small_disk, fsync="everysec", die_with_parent=True, options={"hz": "100"}) as server:
        async with under_load(server.url, 1200, ahead=True) as (service, producing):
            filler = fill(small_disk)
            await eventually(lambda: refuses(server))
            late = AsyncClient(server.url)
            with pytest.raises(RedisUnavailableError, match="MISCONF"):
                await late.submit(Job(model=MODEL, input="refused", id="late"))
            await late.aclose()
            before = service.router.counts.answered
            found = await examine_redis(server.url)
            assert [diagnosis.what for diagnosis in found if diagnosis.level is Level.ERROR] == [
                "could not write its append-only file the last time it tried"
            ]
            assert not producing.done()
            filler.unlink()
            await eventually(lambda: service.router.counts.answered > before)


def refuses(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        info: Any = client.info("persistence")
        try:
            client.set("room", 1, px=1)
        except redis.exceptions.ResponseError as error:
            return "MISCONF" in str(error) and info["aof_last_write_status"] == "err"
    return False


async def test_the_disk_is_full_and_every_write_is_synced(small_disk: Path) -> None:
    """With `appendfsync always` the server ends itself rather than break its word; with room it comes back whole."""
    with EmbeddedServer(small_disk, fsync="always", die_with_parent=True, options={"hz": "100"}) as server:
        async with under_load(server.url, 1200, ahead=True) as (service, producing):
            filler = fill(small_disk)
            await eventually(lambda: not service.router.reachable)
            assert not producing.done()
            filler.unlink()
            server.kill()  # what is left of it: the kernel's entry for a process that has ended
            server.start()
            await eventually(lambda: service.router.reachable)


# -- certificates are changed ---------------------------------------------------------------------------------------


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Authority, Authority]:
    """That of today, and that of tomorrow."""
    (tmp_path / "today").mkdir()
    (tmp_path / "tomorrow").mkdir()
    return Authority(tmp_path / "today", "today"), Authority(tmp_path / "tomorrow", "tomorrow")


class Front:
    """TLS before a server, at one port, with one certificate after the other."""

    def __init__(self, server: EmbeddedServer, trusted: Path) -> None:
        self._server = server
        [self._port] = free_ports(1)
        self.url = f"rediss://localhost:{self._port}/0?ssl_ca_certs={quote(str(trusted))}"
        self._front: TlsFront | None = None
        self._issued = 0

    def show(self, authority: Authority) -> None:
        """From now on be who this authority says one is; whoever was connected has to connect again."""
        self.close()
        self._issued += 1
        pair = authority.issue(f"server-{self._issued}", "localhost", "127.0.0.1")
        self._front = TlsFront(self._server.socket, pair, port=self._port)
        self._front.__enter__()
        with redis.Redis.from_url(self._server.url) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def close(self) -> None:
        if self._front is not None:
            self._front.__exit__(None, None, None)
            self._front = None


@pytest.fixture
def front(own_server: EmbeddedServer, authorities: tuple[Authority, Authority], tmp_path: Path) -> Iterator[Front]:
    """Everybody has been told to trust both authorities, as is done before a change of them."""
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(authority.file.read_bytes() for authority in authorities))
    front = Front(own_server, both)
    front.show(authorities[0])
    yield front
    front.close()


async def test_the_server_gets_new_certificates(front: Front, authorities: tuple[Authority, Authority]) -> None:
    """One of the same authority, then one of the next: connections break, and the work goes on."""
    async with under_load(front.url, 1500) as (service, _producing):
        for authority in authorities:
            front.show(authority)
            await eventually(_more_answers(service))


async def test_the_server_gets_a_wrong_certificate(
    front: Front, own_server: EmbeddedServer, authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    """Of an authority that nobody trusts: the service waits, and goes on as soon as the mistake is mended."""
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger", "stranger")
    async with under_load(front.url, 1500, client_url=own_server.url) as (service, producing):
        front.show(stranger)
        await eventually(lambda: not service.router.reachable)
        assert not producing.done()
        front.show(authorities[0])
        await eventually(lambda: service.router.reachable)
