"""`headrace top`: what a snapshot holds, what is shown of it, and that a key ends it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis
from rich.console import Console

from headrace import AsyncClient, Job, scripts
from headrace.cli.output import Exit
from headrace.cli.top_view import TopView, duration
from headrace.errors import FailureCode
from headrace.keys import keys_of
from headrace.messages import Status
from headrace.messages.envelope import Envelope
from headrace.messages.job import PRIORITIES
from headrace.models.dead_letters import DeadLetter
from headrace.models.overview import LaneLoad, ModelOverview
from headrace.models.routers import RouterSign, read_routers
from headrace.models.snapshot import ModelSnapshot, Pace, PoolSnapshot, ServiceSnapshot, SnapshotReader, Speedometer
from headrace.server.connection import commands
from headrace_cluster.cli.top import PoolsSeen
from headrace_cluster.embedded import EmbeddedServer
from support.by_hand import HandService
from support.command_line import HEADRACE, Run
from support.service import PlainService
from support.users import PASSWORD, make_users, refusals

AT_MS = 1_790_000_000_000


def model(name: str = "m", *, submitted: int = 0, ok: int = 0, live: int = 0, **fields: Any) -> ModelSnapshot:
    counts = {"submitted": submitted, "ok": ok, "live": live} | fields.pop("counts", {})
    reply = [part for field, count in counts.items() for part in (field.encode(), str(count).encode())]
    waiting = fields.pop("waiting", (live, 0, 0))
    lanes = tuple(
        LaneLoad(priority, live=count, delivered=0) for priority, count in zip(PRIORITIES, waiting, strict=True)
    )
    overview = ModelOverview(name, scripts.Audit.from_reply(reply), lanes)
    return ModelSnapshot(overview, fields.pop("oldest_s", None), **fields)  # fmt: skip


def at(taken_s: float, *models: ModelSnapshot) -> ServiceSnapshot:
    return ServiceSnapshot(taken_s, AT_MS + int(taken_s * 1000), 0.0005, 5 << 20, models)


def text(view: TopView, *, width: int = 200) -> str:
    console = Console(width=width, file=(written := io.StringIO()))
    console.print(view.render())
    return written.getvalue()


# -- pace -----------------------------------------------------------------------------------------------------------


def test_a_pace_needs_two_looks() -> None:
    """Jobs between them, over the seconds between them."""
    speed = Speedometer()
    assert speed.add(at(0, model(submitted=100, ok=40, live=60)))["m"] == Pace()
    assert speed.add(at(2, model(submitted=120, ok=80, live=40)))["m"] == Pace(10.0, 20.0, 2.0)


def test_a_pace_is_that_of_the_last_seconds() -> None:
    """What was before the window does not count."""
    speed = Speedometer(window_s=10)
    for second in range(30):
        pace = speed.add(at(second, model(submitted=0, ok=second * 5 if second < 15 else 75, live=3)))["m"]
    assert pace == Pace(0.0, 0.0, math.inf)


def test_more_comes_than_goes() -> None:
    """Then there is no end to it."""
    speed = Speedometer()
    speed.add(at(0, model()))
    assert speed.add(at(1, model(submitted=10, ok=5, live=5)))["m"].drain_s == math.inf
    assert speed.add(at(2, model(submitted=10, ok=10, live=0)))["m"].drain_s == 0


def test_counters_that_were_reset() -> None:
    """FLUSHALL: no negative pace; and a model that is new has none yet."""
    speed = Speedometer()
    speed.add(at(0, model(submitted=10, ok=10)))
    paces = speed.add(at(1, model(), model("new")))
    assert (paces["m"].submitted_per_s, paces["new"]) == (0, Pace())


# -- the view -------------------------------------------------------------------------------------------------------

BUSY = model(
    "minilm",
    submitted=1500,
    ok=200,
    live=1300,
    waiting=(1000, 200, 100),
    oldest_s=200.0,
    routers=[RouterSign("r-1", True, 5), RouterSign("r-2", False, 0)],
    pools=[PoolSnapshot("minilm@cpu", 1, 2, "upscaling", "int8")],
    batch_jobs=12.3,
    batch_tokens=900.0,
    counts={"dead_letters": 2},
)


def test_what_is_shown_of_a_model() -> None:
    """A line of its lanes, and one of its pool."""
    lines = text(TopView("redis://host", at(0, BUSY), {"minilm": Pace(100.0, 50.0, math.inf)})).splitlines()
    [lanes] = [line for line in lines if line.startswith("minilm ")]
    assert lanes.split("  ")[0] == "minilm"
    assert lanes.split()[1:] == [
        "1,000/200/100",
        "3",
        "m",
        "20",
        "s",
        "0",
        "0",
        "100",
        "50",
        "grows",
        "2",
        "0",
        "0",
        "1",
    ]
    [pool] = [line for line in lines if line.startswith("minilm@cpu")]
    assert pool.split() == ["minilm@cpu", "1", "2", "12", "900", "upscaling", "int8"]
    assert "redis://host  0.5 ms  5 MiB" in lines[0]  # fmt: skip


def test_what_is_wrong_stands_first_and_what_has_no_room_is_counted() -> None:
    """Lost jobs before busy models, busy ones before idle ones."""
    wrong = model("wrong", submitted=5, ok=3)
    idle = [model(f"idle-{n}") for n in range(20)]
    shown = text(TopView("x", at(0, *idle, BUSY, wrong), {}, rows=3))
    names = [line.split()[0] for line in shown.splitlines()[2:5]]
    assert names == ["wrong", "minilm", "idle-0"]
    assert "… and 19 models with less to do" in shown


def test_no_model_yet() -> None:
    assert "no service has registered a model" in text(TopView("x", at(0), {}))


def letter(died_ms: int, message: str) -> DeadLetter:
    envelope = Envelope(1, "job-1", "box", "tenant", 0, 0, 0, "t", "-")
    return DeadLetter(f"{died_ms}-0", envelope, 0, b"", "poison", message)


def test_the_last_dead_letters() -> None:
    """The newest first; nothing in a message is markup, and none is long."""
    found = model(letters=[letter(AT_MS, "[bold]first\nline[/bold] " + "x" * 500), letter(AT_MS - 1000, "second")])
    lines = text(TopView("x", at(0, found), {})).splitlines()
    first, second = lines[-2], lines[-1]
    assert "[bold]first line[/bold]" in first
    assert len(first) < 200
    assert second.split()[-3:] == ["job-1", "poison", "second"]


def test_fields_are_json_whatever_the_numbers_are() -> None:
    """Infinity is no number in JSON."""
    fields = TopView("x", at(0, BUSY), {"minilm": Pace(1.0, 0.0, math.inf)}).fields()
    [shown] = json.loads(json.dumps(fields, allow_nan=False))["models"]
    assert (shown["drain_s"], shown["grows"], shown["waiting"]) == (
        None,
        True,
        {"high": 1000, "normal": 200, "low": 100},
    )
    assert shown["pools"] == [
        {"pool": "minilm@cpu", "replicas": 1, "wanted": 2, "status": "upscaling", "variant": "int8"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42, "42 s"),
        (200, "3 m 20 s"),
        (7500, "2 h 5 m"),
        (9e4, "1 d 1 h"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_what_serve_says_is_added() -> None:
    """Replicas to the model's pools, a shared pool only to those whose hash names it, batches to the model."""
    seen = PoolsSeen(
        {name: PoolSnapshot(name, 2, 3, "healthy") for name in ("m@cpu", "m@gpu", "other@cpu", "@small")},
        {"m": {"batches": 4, "dispatched": 40, "tokens": 1000}},
    )
    found = seen.complete(at(0, model(pools=[PoolSnapshot("m@cpu", variant="int8")]), model("m#0"), model("idle")))
    first, shard, idle = found.models
    assert [(pool.name, pool.replicas, pool.variant) for pool in first.pools] == [
        ("m@cpu", 2, "int8"), ("m@gpu", 2, None),
    ]  # fmt: skip
    assert (first.batch_jobs, first.batch_tokens) == (10, 250)
    assert [pool.name for pool in shard.pools] == ["m@cpu", "m@gpu"]
    assert (idle.pools, idle.batch_jobs) == ([], None)


# -- Redis ----------------------------------------------------------------------------------------------------------


async def test_a_snapshot_of_a_real_server(redis_url: str) -> None:
    """Waiting and taken jobs, the age of the oldest, who has them, pools, and what died."""
    client = commands(redis_url)
    async with HandService(redis_url, "m") as service, AsyncClient(redis_url) as producer:
        reader = SnapshotReader(client)
        [empty] = (await reader.read()).models
        assert (empty.oldest_s, empty.routers, empty.pools) == (None, [], [])
        await producer.submit_many([Job(model="m", input=n, inbox="box", id=f"job-{n}") for n in range(4)])
        taken = await service.take(2)
        await client.hset(keys_of("m").pools, mapping={"cost@cpu": "{}", "variant@cpu": "int4", "jobs": "{}"})
        snapshot = await reader.read()
        [full] = snapshot.models
        assert (full.overview.waiting, full.overview.delivered) == (2, 2)
        assert full.oldest_s is not None
        assert 0 <= full.oldest_s < 60
        assert full.routers == [RouterSign("hand", False, 2)]
        assert full.pools == [PoolSnapshot("m@cpu", variant="int4")]
        assert snapshot.memory_bytes > 0
        await client.set(keys_of("m").heartbeat("hand"), 1, px=60_000)
        assert (await read_routers(client, ["m"]))["m"] == [RouterSign("hand", True, 2)]
        await service.answer(*taken)
    await client.aclose()


async def test_dead_letters_are_seen_by_who_may(own_server: EmbeddedServer) -> None:
    """A monitor sees all but them, and is refused once only."""
    with redis.Redis.from_url(own_server.url) as admin:
        make_users(admin)
        async with HandService(own_server.url, "m") as service, AsyncClient(own_server.url) as client:
            await client.submit_many([Job(model="m", input="x", id="job-1", inbox="box")])
            await service.fail(*await service.take(), status=Status.DEAD, code=FailureCode.POISON)
            for user, expected in (("admin", ["job-1"]), ("monitor", [])):
                connection = commands(own_server.url.replace("unix://", f"unix://{user}:{PASSWORD}@"))
                reader = SnapshotReader(connection)
                for _ in range(2):
                    [found] = (await reader.read()).models
                    assert [letter.envelope.job_id for letter in found.letters] == expected
                await connection.aclose()
        assert [refused for refused in refusals(admin) if "monitor" in refused] == ["monitor: command xrevrange"]


async def test_the_command_prints_for_programs_and_people(headrace: Run, redis_url: str) -> None:
    """`--once` looks twice, so that there are rates."""
    async with PlainService(redis_url, "echo"):
        await headrace("submit", "echo", "x")
        ran = await headrace("top", "--once", "--json", "--interval", "0.1")
        assert ran.status == Exit.DONE
        [shown] = ran.objects[-1]["models"]
        assert (shown["submitted"], shown["finished_per_s"], shown["lost"]) == (1, 0.0, 0)
        assert [router["alive"] for router in shown["routers"]] == [True]
        people = await headrace("top", "echo", "--once", "--interval", "0.1")
        assert people.out.splitlines()[2].split()[0] == "echo"


async def test_a_ray_that_is_not_there(headrace: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and what to do."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody is there")))
    ran = await headrace("top", "--once", "--json", "--ray-address", "10.0.0.1:1")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.UNAVAILABLE, "ray_unavailable")


@pytest.mark.skipif(sys.platform != "linux", reason="a pseudo-terminal as Linux makes them")
async def test_a_key_ends_it(redis_url: str) -> None:
    """On a terminal it is a screen of its own, which goes when q is pressed; the terminal is as it was."""
    import fcntl
    import pty
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    before = termios.tcgetattr(its)
    seen = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: seen.extend(os.read(ours, 65_536)))
    async with HandService(redis_url, "by-hand"):
        arguments = ("top", "--interval", "0.1", "-u", redis_url)
        # xdist says of its processes how wide a terminal is that this is not.
        plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        process = await asyncio.create_subprocess_exec(
            HEADRACE, *arguments, stdin=its, stdout=its, stderr=its, env=plain | {"TERM": "xterm"}
        )
        try:
            await until(lambda: b"by-hand" in seen)
            os.write(ours, b"xq")  # whoever types fast is read at once
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    asyncio.get_running_loop().remove_reader(ours)
    assert termios.tcgetattr(its) == before
    os.close(ours)
    os.close(its)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for comes through a descriptor
            await asyncio.sleep(0.02)
