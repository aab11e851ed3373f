"""A batch that is ended by force goes on where it stopped: nothing runs twice, no line is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from headrace.aio import AsyncClient
from headrace.cli.batch_state import BatchState
from headrace.keys import keys_of
from support.command_line import CountingEngine, Ran, Run, Zygote, end, read_lines, start, write_lines
from support.proxy import Proxy
from support.service import PlainService
from support.waiting import eventually

LINES = 600


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Mostly good lines; every hundredth is bad in one of three ways."""
    lines: list[object] = [{"custom_id": f"id-{n}", "input": f"drop {n}"} for n in range(LINES)]
    for n in range(50, LINES, 100):
        lines[n] = (b"no json", {"custom_id": f"id-{n - 1}", "input": "twice"}, {"custom_id": f"id-{n}"})[n // 100 % 3]
    return write_lines(tmp_path / "in.jsonl", lines)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def errors_of(output: Path) -> list[dict[str, Any]]:
    return read_lines(Path(f"{output}.errors.jsonl"))


def good_lines() -> list[int]:
    return [n + 1 for n in range(LINES) if n % 100 != 50]


def assert_complete(ran: Ran, output: Path, engine: CountingEngine) -> None:
    """Every line is finished by exactly one line, and every good one ran exactly once."""
    good = [number - 1 for number in good_lines()]
    assert sorted(line["line"] for line in read_lines(output)) == good_lines()
    assert {line["custom_id"]: line["output"] for line in read_lines(output)} == {f"id-{n}": f"drop {n}" for n in good}
    assert sorted(line["line"] for line in errors_of(output)) == [n + 1 for n in range(50, LINES, 100)]
    assert engine.ran == dict.fromkeys((f"drop {n}" for n in good), 1)
    assert (ran.status, ran.last["done"], ran.last["failed"]) == (1, len(good), LINES // 100)
    assert not Path(f"{output}.state").exists()


CRASHES = [
    ("headrace.cli.batch_state:BatchState.write", "before", 1),  # nothing but an empty output
    ("headrace.cli.batch_state:BatchState.write", "after", 1),  # a state, and nothing submitted
    ("headrace.aio:AsyncClient.submit_patiently", "after", 3),  # submitted, and nothing read
    ("headrace.cli.batch_output:BatchOutput.write_done", "after", 70),  # in this process's buffer alone
    ("headrace.cli.batch_output:BatchOutput.flush", "after", 2),  # in the file, behind the state's back
    ("os:fsync", "after", 3),  # on disk, behind the state's back
    ("headrace.cli.batch_state:BatchState.write", "before", 2),
    ("headrace.cli.batch_state:BatchState.write", "after", 2),  # recorded, and still in Redis
    ("headrace.aio:AsyncClient.trim", "after", 1),  # deleted from Redis
    ("headrace.cli.batch_output:BatchOutput.finish", "before", 1),  # complete but for its state file
]


@pytest.mark.parametrize(("place", "when", "count"), CRASHES)
async def test_a_kill_at_any_step_costs_nothing(
    service: PlainService,
    engine: CountingEngine,
    headrace: Run,
    zygote: Zygote,
    source: Path,
    output: Path,
    place: str,
    when: str,
    count: int,
) -> None:
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")

    assert await zygote.kill_at(place, when, count, *command) == -signal.SIGKILL
    assert_complete(await headrace(*command), output, engine)


async def test_kills_at_random_moments_cost_nothing(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path
) -> None:
    """Each time another part of the work is done, on disk, in Redis, or in the replica's hands."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "40", "--json")
    rng = random.Random(4)
    for _ in range(4):
        process = await start(*command)
        goal = len(read_back(output)) + rng.randrange(10, 120)
        await kill_at(process, output, goal)

    assert_complete(await headrace(*command), output, engine)


async def kill_at(process: Process, output: Path, lines: int) -> None:
    """Kill it when the output has so many lines, unless it is done before."""
    await eventually(lambda: len(read_back(output)) >= lines or process.returncode is not None)
    if process.returncode is None:
        process.kill()
    await end(process)


def read_back(output: Path) -> list[bytes]:
    """The lines of a file that somebody writes at this moment."""
    return output.read_bytes().splitlines() if output.exists() else []


async def test_ctrl_c_says_how_to_go_on(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path
) -> None:
    command = ("batch", "echo", source, "-o", output, "--in-flight", "8", "--json")
    process = await start(*command)
    await eventually(lambda: len(read_back(output)) >= 20)
    process.send_signal(signal.SIGINT)
    interrupted = await end(process)

    assert interrupted.status == 130
    assert interrupted.last["error"]["code"] == "interrupted"
    assert "error: interrupted" in interrupted.err
    assert "repeat the command" in interrupted.err
    resumed = await headrace(*command, "--in-flight", "1000")
    assert_complete(resumed, output, engine)
    assert resumed.last["skipped"] >= 20


async def test_what_a_power_cut_left_torn_is_written_again(
    service: PlainService, engine: CountingEngine, headrace: Run, zygote: Zygote, source: Path, output: Path
) -> None:
    """Behind what was on disk for certain there may be lines with holes, half a line, and room never filled."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")
    await zygote.kill_at("headrace.cli.batch_output:BatchOutput.flush", "after", 2, *command)
    change(output, hole_in_the_middle)
    change(Path(f"{output}.errors.jsonl"), lambda whole: whole[:-7] + bytes(100_000))

    assert_complete(await headrace(*command), output, engine)


def hole_in_the_middle(whole: bytes) -> bytes:
    lines = whole.splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle].replace(b'"input_tokens"', bytes(14))
    return b"".join(lines)


async def test_nothing_is_deleted_before_it_is_on_disk(
    service: PlainService, headrace: Run, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fsync, then the state, then Redis: the one order in which a power cut loses nothing."""
    steps: list[tuple[str, str]] = []
    write, trim, fsync = BatchState.write, AsyncClient.trim, os.fsync

    def logged_write(state: BatchState, path: Path) -> None:
        steps.append(("state", state.cursor))
        write(state, path)

    async def logged_trim(client: AsyncClient, inbox: str, *, model: str, through: str) -> int:
        steps.append(("trim", through))
        return await trim(client, inbox, model=model, through=through)

    def logged_fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), output.stat()):
            steps.append(("fsync", str(size_of(output))))
        fsync(descriptor)

    monkeypatch.setattr(BatchState, "write", logged_write)
    monkeypatch.setattr(AsyncClient, "trim", logged_trim)
    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr("headrace.cli.batch_run._CHECKPOINT_EVERY", 100)
    await headrace("batch", "echo", source, "-o", output, "--in-flight", "50")

    names = [name for name, _ in steps]
    assert names[0] == "state"
    assert names.count("trim") >= 4
    for n in (n for n, name in enumerate(names) if name == "trim"):
        assert names[n - 2 : n] == ["fsync", "state"]
        assert steps[n - 1][1] == steps[n][1]
    assert steps[-3][1] == str(size_of(output))


def size_of(path: Path) -> int:
    return path.stat().st_size


async def test_an_answer_behind_the_cursor_is_found(
    service: PlainService,
    engine: CountingEngine,
    headrace: Run,
    zygote: Zygote,
    source: Path,
    output: Path,
    redis_url: str,
) -> None:
    """A state that is ahead of its output, as a copied or restored file may be: the job's record leads there."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")
    await zygote.kill_at("headrace.cli.batch_output:BatchOutput.flush", "after", 2, *command)
    change(output, lambda _: b"")
    with redis.Redis.from_url(redis_url) as client:
        await eventually(lambda: not sum(client.xlen(lane) for lane in keys_of("echo").lanes))
        seconds, microseconds = client.time()
    now = f'"cursor":"{seconds * 1000 + microseconds // 1000 + 1}-0"'.encode()
    change(Path(f"{output}.state"), lambda whole: whole.replace(b'"cursor":"0"', now))

    ran = await headrace(*command, "--timeout-s", "20")
    assert sorted(line["line"] for line in read_lines(output)) == good_lines()
    assert set(engine.ran.values()) == {1}
    assert ran.status == 1


async def test_an_answer_that_is_gone_fails_its_line_alone(
    service: PlainService,
    engine: CountingEngine,
    headrace: Run,
    zygote: Zygote,
    source: Path,
    output: Path,
    redis_url: str,
) -> None:
    """Somebody deleted the inbox: what was answered there is not run again, and said to be gone."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")
    await zygote.kill_at("headrace.aio:AsyncClient.submit_patiently", "after", 2, *command)
    with redis.Redis.from_url(redis_url) as client:
        await eventually(lambda: not sum(client.xlen(lane) for lane in keys_of("echo").lanes))
        for key in client.scan_iter("hr:{echo}:r:*"):
            client.delete(key)

    ran = await headrace(*command)

    assert ran.status == 1
    gone = [line for line in errors_of(output) if line["error"]["code"] == "result_gone"]
    assert len(gone) == 50
    assert len(read_lines(output)) + len(errors_of(output)) == LINES
    assert set(engine.ran.values()) == {1}


async def test_what_redis_forgot_runs_again(
    service: PlainService,
    engine: CountingEngine,
    headrace: Run,
    zygote: Zygote,
    source: Path,
    output: Path,
    redis_url: str,
) -> None:
    """Records and answers whose retention is over: running again is the only way to an answer."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")
    await zygote.kill_at("headrace.aio:AsyncClient.submit_patiently", "after", 2, *command)
    with redis.Redis.from_url(redis_url) as client:
        await eventually(lambda: not sum(client.xlen(lane) for lane in keys_of("echo").lanes))
        for key in [*client.scan_iter("hr:{echo}:r:*"), *client.scan_iter("hr:{echo}:j:*")]:
            client.delete(key)
    again = set(engine.ran)
    engine.ran.clear()

    ran = await headrace(*command)

    assert again < set(engine.ran)
    assert_complete(ran, output, engine)


async def test_a_completed_batch_is_not_run_again_by_mistake(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path
) -> None:
    command = ("batch", "echo", source, "-o", output, "--json")
    assert (await headrace(*command)).status == 1
    refused = await headrace(*command)
    assert (refused.status, refused.last["error"]["code"]) == (2, "output_exists")
    assert "--restart" in refused.err

    engine.ran.clear()
    assert_complete(await headrace(*command, "--restart"), output, engine)


async def test_a_batch_goes_on_only_as_the_same_batch(
    service: PlainService, headrace: Run, zygote: Zygote, source: Path, output: Path
) -> None:
    """Another model, other params, another form of tensors or another input would mix two batches in one file."""
    command = ("batch", "echo", source, "-o", output, "--in-flight", "8", "--json")
    await zygote.kill_at("headrace.aio:AsyncClient.submit_patiently", "after", 3, *command)

    for option, name in (("--param=x=1", "params"), ("--tensor-format=base64", "tensors")):
        refused = await headrace(*command, option)
        assert (refused.status, refused.last["error"]["code"]) == (2, "batch_changed")
        assert name in refused.err
    original = change(source, lambda whole: whole.replace(b"drop 7", b"drip 7"))
    refused = await headrace(*command)
    assert (refused.status, refused.last["error"]["code"]) == (2, "batch_changed")
    assert "input's content" in refused.err
    change(source, lambda _: original)
    assert (await headrace(*command)).status == 1


async def test_files_that_were_tampered_with_are_refused(
    service: PlainService, headrace: Run, zygote: Zygote, source: Path, output: Path
) -> None:
    command = ("batch", "echo", source, "-o", output, "--in-flight", "100", "--json")
    await zygote.kill_at("headrace.aio:AsyncClient.trim", "before", 1, *command)
    state = Path(f"{output}.state")

    for path, damage, code in (
        (output, lambda whole: whole[20:], "output_changed"),
        (output, lambda _: b"", "output_changed"),
        (output, lambda whole: b"{" + whole[1:].replace(b"{", b"["), "output_changed"),
        (state, lambda _: b"{}", "state_unreadable"),
        (state, lambda whole: whole.replace(b"version", b"vision"), "state_unreadable"),
    ):
        whole = change(path, damage)
        refused = await headrace(*command)
        assert (refused.status, refused.last["error"]["code"]) == (2, code)
        change(path, lambda _, whole=whole: whole)  # type: ignore[misc]
    assert (await headrace(*command)).status == 1


def change(path: Path, damage: Callable[[bytes], bytes]) -> bytes:
    """Rewrite a file; returns what it was."""
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    return whole


async def test_two_runs_never_write_one_output(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path
) -> None:
    command = ("batch", "echo", source, "-o", output, "--in-flight", "20", "--json")
    process = await start(*command)
    await eventually(lambda: read_back(output))
    os.kill(process.pid, signal.SIGSTOP)
    refused = await headrace(*command)
    assert (refused.status, refused.last["error"]["code"]) == (2, "output_busy")
    os.kill(process.pid, signal.SIGCONT)

    assert_complete(await end(process), output, engine)


async def test_an_outage_of_redis_is_waited_out(
    service: PlainService, engine: CountingEngine, redis_url: str, headrace: Run, source: Path, output: Path
) -> None:
    """Connections break while jobs are out: the run complains, goes on, and loses nothing."""
    async with Proxy(redis_url) as proxy:
        command = ("batch", "echo", source, "-o", output, "--in-flight", "8", "--json", "-u", proxy.url)
        running = asyncio.create_task(headrace(*command))
        await eventually(lambda: len(read_back(output)) >= 20)
        proxy.refusing = True
        proxy.cut()
        done = len(read_back(output))
        await eventually(lambda: proxy.accepted > 20 or running.done(), within_s=20)
        assert len(read_back(output)) <= done + 8
        proxy.refusing = False
        ran = await running

    assert_complete(ran, output, engine)
    assert "warning: " in ran.err
