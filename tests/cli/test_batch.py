"""`headrace batch`: what it takes, what it writes, and what it says of lines it cannot run."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path
from typing import Any

import pytest
import redis

from headrace.cli.batch_input import MAX_LINE_BYTES
from headrace.cli.batch_output import BatchOutput
from headrace.cli.batch_state import BatchIdentity, BatchState
from headrace.cli.output import Exit
from headrace.cli.rendering import TensorFormat
from headrace.codec import MAX_PAYLOAD_BYTES
from headrace.errors import FailureCode
from headrace.ids import is_name
from headrace.keys import keys_of
from headrace.messages import Tensor, unpack_payload
from headrace.models.registry import Limits
from headrace_workers.engines.base import ItemError
from support.by_hand import HandService
from support.command_line import CountingEngine, Run, read_lines, write_lines
from support.service import PlainService
from support.waiting import eventually


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five good lines."""
    return write_lines(tmp_path / "in.jsonl", [{"custom_id": f"id-{n}", "input": f"drop {n}"} for n in range(5)])


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# -- what it writes -----------------------------------------------------------------------------------------


async def test_an_output_line_says_how_it_came_about(
    service: PlainService, headrace: Run, source: Path, output: Path
) -> None:
    assert (await headrace("batch", "echo", source, "-o", output)).status == 0
    line = next(line for line in read_lines(output) if line["line"] == 3)
    assert line.keys() == {"custom_id", "line", "output", "input_tokens", "queued_ms", "run_ms", "variant"}
    assert (line["custom_id"], line["output"], line["variant"]) == ("id-2", "drop 2", "echo")


async def test_nothing_else_is_left(service: PlainService, headrace: Run, source: Path, output: Path) -> None:
    """No error file without failures, no state file after the end, no answers in Redis."""
    ran = await headrace("batch", "echo", source, "-o", output, "--json")
    assert ran.last["errors"] is None
    assert names_in(output.parent) == {"in.jsonl", "out.jsonl"}


async def test_the_inbox_is_emptied(
    service: PlainService, headrace: Run, source: Path, output: Path, redis_url: str
) -> None:
    await headrace("batch", "echo", source, "-o", output)
    with redis.Redis.from_url(redis_url) as client:
        assert [client.xlen(key) for key in client.scan_iter("hr:{echo}:r:*")] == [0]


async def test_the_summary(service: PlainService, headrace: Run, source: Path, output: Path) -> None:
    summary = (await headrace("batch", "echo", source, "-o", output, "--json")).last
    assert summary.pop("seconds") > 0
    assert summary.pop("jobs_per_s") > 0
    assert summary == {"total": 5, "done": 5, "failed": 0, "skipped": 0, "output": str(output), "errors": None}
    for_people = await headrace("batch", "echo", source, "-o", output, "--restart")
    assert "5 done, 0 failed of 5 lines" in for_people.out
    assert for_people.err == ""  # the bar is for terminals


@pytest.mark.parametrize("form", ["list", "base64"])
async def test_tensors(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path, form: str
) -> None:
    data = struct.pack("<6f", *(n / 8 for n in range(6)))
    engine.answer = lambda _: Tensor(dtype="float32", shape=[2, 3], data=data)
    await headrace("batch", "echo", source, "-o", output, "--tensor-format", form)
    tensor = read_lines(output)[0]["output"]
    if form == "list":
        assert tensor == {"dtype": "float32", "shape": [2, 3], "values": [[0, 0.125, 0.25], [0.375, 0.5, 0.625]]}
    else:
        assert tensor == {"dtype": "float32", "shape": [2, 3], "base64": base64.b64encode(data).decode()}


async def test_failed_jobs_are_lines_of_the_error_file(
    service: PlainService, engine: CountingEngine, headrace: Run, source: Path, output: Path, tmp_path: Path
) -> None:
    bad = ItemError(FailureCode.INPUT_TOO_LONG, "513 tokens", hint="truncate", retryable=False)
    engine.answer = lambda value: bad if value == "drop 1" else float("inf") if value == "drop 2" else value
    ran = await headrace("batch", "echo", source, "-o", output, "--errors", tmp_path / "err.jsonl", "--json")

    assert (ran.status, ran.last["done"], ran.last["failed"]) == (Exit.FAILED, 3, 2)
    first, second = sorted(read_lines(tmp_path / "err.jsonl"), key=lambda line: line["line"])
    assert first == {
        "custom_id": "id-1",
        "line": 2,
        "error": {"code": "input_too_long", "message": "513 tokens", "hint": "truncate", "retryable": False},
    }
    assert (second["custom_id"], second["error"]["code"]) == ("id-2", "not_finite")


async def test_an_answer_nobody_can_read_fails_its_line(
    redis_url: str, headrace: Run, source: Path, output: Path
) -> None:
    """Written by something newer, or broken: whose it was is found out, and the rest goes on."""
    async with HandService(redis_url) as service:
        running = asyncio.create_task(headrace("batch", "by-hand", source, "-o", output, "--json"))
        entries = await take(service, 5)
        newer = entries[0]._replace(text=b"9" + entries[0].text[1:])
        await service.answer(newer, *entries[1:4])
        with redis.Redis.from_url(redis_url) as client:
            lane = keys_of("by-hand").lanes[1]
            assert client.xlen(lane) == 1
        await service._complete([(entries[4], "ok", b"\xc1")])  # type: ignore[list-item]
        ran = await running

    assert (ran.last["done"], ran.last["failed"]) == (3, 2)
    errors = {line["line"]: line["error"]["code"] for line in read_lines(Path(f"{output}.errors.jsonl"))}
    assert errors == {1: "unsupported_version", 5: "decode"}


async def take(service: HandService, count: int) -> list[Any]:
    entries: list[Any] = []

    async def more() -> bool:
        entries.extend(await service.take())
        return len(entries) >= count

    await eventually(more)
    return entries


# -- what it takes ------------------------------------------------------------------------------------------


async def test_a_lines_params_outrank_the_commands(redis_url: str, headrace: Run, tmp_path: Path, output: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl",
        [{"custom_id": "a", "input": [1, {"k": None}], "params": {"k": 5}}, {"custom_id": "b", "input": 2.5}],
    )
    async with HandService(redis_url) as service:
        options = ("--param", "k=3", "--param", "mode=fast", "--priority", "low", "--tenant", "me")
        running = asyncio.create_task(headrace("batch", "by-hand", source, "-o", output, *options))
        entries = await take(service, 2)
        await service.answer(*entries)
        await running
    assert [unpack_payload(entry.payload) for entry in entries] == [
        ([1, {"k": None}], {"k": 5, "mode": "fast"}),
        (2.5, {"k": 3, "mode": "fast"}),
    ]
    assert {(entry.priority, entry.envelope.tenant) for entry in entries} == {(2, "me")}


BAD_LINES: list[tuple[Any, str]] = [
    (b"not json", "not_json"),
    (b'{"custom_id": "x", "input": ', "not_json"),
    (b"[" * 100_000, "not_json"),
    (b'{"custom_id": "x", "input": ' + b"9" * 5000 + b"}", "not_json"),
    (b'{"custom_id": "x", "input": "\xff"}', "not_utf8"),
    (b'["custom_id", "input"]', "not_an_object"),
    (b"null", "not_an_object"),
    ({"input": "x"}, "missing_custom_id"),
    ({"custom_id": 7, "input": "x"}, "invalid_custom_id"),
    ({"custom_id": "", "input": "x"}, "invalid_custom_id"),
    ({"custom_id": "x" * 513, "input": "x"}, "invalid_custom_id"),
    ({"custom_id": "half \ud800", "input": "x"}, "invalid_custom_id"),
    ({"custom_id": "good-1", "input": "again"}, "duplicate_custom_id"),
    ({"custom_id": "a", "inptu": "x"}, "unknown_key"),
    ({"custom_id": "b", "method": "POST", "url": "/v1", "body": {}}, "unknown_key"),
    ({"custom_id": "c"}, "missing_input"),
    ({"custom_id": "d", "input": "x", "params": [1]}, "invalid_params"),
    ({"custom_id": "e", "input": "x", "params": None}, "invalid_params"),
    ({"custom_id": "f", "input": float("nan")}, "invalid_job"),
    ({"custom_id": "g", "input": "half \ud800"}, "invalid_job"),
    ({"custom_id": "h", "input": 1 << 64}, "invalid_job"),
    ({"custom_id": "i", "input": "x", "params": {f"p{n}": n for n in range(65)}}, "invalid_job"),
    ({"custom_id": "j", "input": "x" * MAX_PAYLOAD_BYTES}, "too_large"),
    (b'{"custom_id": "k", "input": "' + b"x" * MAX_LINE_BYTES + b'"}', "line_too_long"),
]


async def test_every_bad_line_has_a_named_error_and_stops_nothing(
    service: PlainService, engine: CountingEngine, headrace: Run, tmp_path: Path, output: Path
) -> None:
    lines: list[Any] = [{"custom_id": "good-1", "input": "one"}, *(line for line, _ in BAD_LINES)]
    source = write_lines(tmp_path / "in.jsonl", [*lines, {"custom_id": "good-2", "input": "two"}])

    ran = await headrace("batch", "echo", source, "-o", output, "--json")

    assert ran.status == Exit.FAILED
    assert (ran.last["total"], ran.last["done"], ran.last["failed"]) == (len(lines) + 1, 2, len(BAD_LINES))
    assert [line["output"] for line in read_lines(output)] == ["one", "two"]
    errors = read_lines(Path(ran.last["errors"]))
    assert [(line["line"], line["error"]["code"]) for line in errors] == [
        (number, code) for number, (_, code) in enumerate(BAD_LINES, start=2)
    ]
    assert all(line["error"].keys() == {"code", "message", "hint", "retryable"} for line in errors)
    assert max(len(line["error"]["message"]) for line in errors) < 500  # the input is never repeated
    assert set(engine.ran) == {"one", "two"}


async def test_a_duplicate_does_not_shadow_the_first(
    redis_url: str, headrace: Run, tmp_path: Path, output: Path
) -> None:
    """The second line of an id is refused; a later run still knows that the first one is to be answered."""
    lines = [{"custom_id": "a", "input": "first"}, {"custom_id": "a", "input": "second"}]
    command = ("batch", "by-hand", write_lines(tmp_path / "in.jsonl", lines), "-o", output, "--json")
    async with HandService(redis_url) as service:
        for _ in range(2):
            assert (await headrace(*command, "--timeout-s", "0.2")).status == Exit.TIMED_OUT
            assert [line["line"] for line in read_lines(Path(f"{output}.errors.jsonl"))] == [2]
        service.keep_answering()
        ran = await headrace(*command)
    assert (ran.last["done"], ran.last["failed"], ran.last["skipped"]) == (1, 1, 1)
    assert [line["output"] for line in read_lines(output)] == ["first"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n  \n\n"], ids=repr)
async def test_line_endings_and_blank_lines(
    service: PlainService, headrace: Run, tmp_path: Path, output: Path, ending: bytes
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\n{"custom_id": "a", "input": 1}\r\n\n{"custom_id": "b", "input": 2}' + ending)
    ran = await headrace("batch", "echo", source, "-o", output, "--json")
    assert (ran.status, ran.last["total"], ran.last["done"]) == (0, 2, 2)
    assert [(line["line"], line["output"]) for line in read_lines(output)] == [(2, 1), (4, 2)]


async def test_an_empty_file_is_done_at_once(
    service: PlainService, headrace: Run, tmp_path: Path, output: Path
) -> None:
    ran = await headrace("batch", "echo", write_lines(tmp_path / "in.jsonl", []), "-o", output, "--json")
    assert (ran.status, ran.last["total"]) == (0, 0)
    assert read_lines(output) == []


async def test_only_so_many_jobs_are_in_flight(redis_url: str, headrace: Run, tmp_path: Path, output: Path) -> None:
    """The file may be larger than Redis has room for."""
    lines = [{"custom_id": str(n), "input": n} for n in range(60)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    async with HandService(redis_url) as service:
        running = asyncio.create_task(headrace("batch", "by-hand", source, "-o", output, "--in-flight", "7"))
        answered, most = 0, 0
        while answered < len(lines):
            entries = await take(service, 1)
            most = max(most, len(entries))
            await service.answer(*entries)
            answered += len(entries)
        assert (await running).status == 0
    assert 1 < most <= 7


async def test_a_full_lane_is_waited_out(redis_url: str, headrace: Run, source: Path, output: Path) -> None:
    async with HandService(redis_url, limits=Limits(lane_capacity=2)) as service:
        service.keep_answering()
        assert (await headrace("batch", "by-hand", source, "-o", output)).status == 0
    assert len(read_lines(output)) == 5


async def test_silence_ends_in_time_and_can_be_gone_on_from(
    redis_url: str, headrace: Run, source: Path, output: Path
) -> None:
    async with HandService(redis_url) as service:
        command = ("batch", "by-hand", source, "-o", output, "--json")
        ran = await headrace(*command, "--timeout-s", "0.2")
        assert (ran.status, ran.last["error"]["code"]) == (Exit.TIMED_OUT, "result_timeout")
        assert "repeat the command" in ran.err
        service.keep_answering()
        assert (await headrace(*command)).last["done"] == 5


async def test_jobs_that_redis_lost_are_handed_over_again(
    redis_url: str, headrace: Run, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lost its last second of writes: what nobody knows of any more is submitted anew."""
    monkeypatch.setattr("headrace.cli.batch_run._LOOK_AFTER_S", 0.1)
    async with HandService(redis_url) as service:
        running = asyncio.create_task(headrace("batch", "by-hand", source, "-o", output, "--timeout-s", "20"))
        await take(service, 5)
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("hr:{by-hand}:j:*"):
                client.delete(key)
            lane = keys_of("by-hand").lanes[1]
            client.xack(lane, "g", *(lost := [entry_id for entry_id, _ in client.xrange(lane)]))
            client.xdel(lane, *lost)
        await service.answer(*await take(service, 5))
        assert (await running).status == 0
    assert len(read_lines(output)) == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{dir}/absent.jsonl", "-o", "{dir}/out.jsonl"], "does not exist"),
        (["{dir}", "-o", "{dir}/out.jsonl"], "is no regular file"),
        (["/dev/stdin", "-o", "{dir}/out.jsonl"], "/dev/stdin"),
        (["{dir}/in.jsonl"], "Missing option '--output'"),
        (["{dir}/in.jsonl", "-o", "{dir}/in.jsonl"], "must be four"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--errors", "{dir}/o"], "must be four"),
        (["{dir}/in.jsonl", "-o", "{dir}/no/out.jsonl"], "is no directory"),
        (["{dir}/in.jsonl", "-o", "/dev/null"], "is no regular file"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--in-flight", "0"], "--in-flight"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--timeout-s", "inf"], "inf is no length of time"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--priority", "urgent"], "priority"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--tenant", "a b"], "tenant"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--param", "p"], "is not NAME=VALUE"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--param", "p=Infinity"], "holds NaN or infinity"),
        (["{dir}/in.jsonl", "-o", "{dir}/o", "--tensor-format", "pickle"], "--tensor-format"),
    ],
)
async def test_bad_input(
    redis_url: str, headrace: Run, source: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    ran = await headrace("batch", "echo", *(argument.format(dir=tmp_path) for argument in arguments), "--json")
    assert ran.status == Exit.USAGE
    assert says in ran.err
    assert names_in(tmp_path) == {"in.jsonl"}


async def test_an_existing_file_is_not_overwritten(
    service: PlainService, headrace: Run, source: Path, output: Path
) -> None:
    write_lines(output, [{"precious": True}])
    ran = await headrace("batch", "echo", source, "-o", output, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "output_exists")
    assert read_lines(output) == [{"precious": True}]


async def test_a_full_disk_is_said_to_be_full(
    service: PlainService, headrace: Run, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: BatchOutput) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BatchOutput, "flush", full)
    ran = await headrace("batch", "echo", source, "-o", output, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "os")
    monkeypatch.undo()


async def test_an_input_that_changes_meanwhile_is_noticed(
    redis_url: str, headrace: Run, source: Path, output: Path
) -> None:
    async with HandService(redis_url) as service:
        running = asyncio.create_task(headrace("batch", "by-hand", source, "-o", output, "--in-flight", "1", "--json"))
        entries = await take(service, 1)
        append(source, b'{"custom_id": "late", "input": "x"}\n')
        await service.answer(*entries)
        service.keep_answering()
        ran = await running
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "input_changed")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_what_the_state_says_is_on_disk_is_there(output: Path) -> None:
    errors, state = output.with_name("err.jsonl"), output.with_name("state")
    identity = BatchIdentity(model="m", params={}, tensors=TensorFormat.LIST, input_bytes=1, input_sha256="0")
    files = BatchOutput(output, errors, state)
    files.open(identity, restart=False)
    files.write_done(1, "a", {"output": 1})
    files.write_failed(2, "b", {"code": "engine_failed"})
    files.checkpoint("5-0")

    recorded = BatchState.read(state)
    assert recorded is not None
    assert recorded.cursor == "5-0"
    assert (recorded.output_bytes, recorded.errors_bytes) == (output.stat().st_size, errors.stat().st_size)
    assert len(read_lines(output)) == len(read_lines(errors)) == 1
    assert state.stat().st_mode & 0o077 == 0  # whoever reads it can find the inbox
    files.close()


def test_ids_cannot_be_guessed_and_fit_the_wire(tmp_path: Path) -> None:
    identity = BatchIdentity(model="m", params={}, tensors=TensorFormat.LIST, input_bytes=1, input_sha256="0")
    first, second = BatchState.begin(identity), BatchState.begin(identity)
    assert first.inbox != second.inbox
    assert first.run != second.run
    assert first.run not in first.inbox
    assert is_name(first.inbox)
    assert is_name(f"{first.run}-{10**12}-{10**15}")
    assert first.model_copy(update={"cursor": "1-1"}).inbox == first.inbox
