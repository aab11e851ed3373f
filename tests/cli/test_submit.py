"""`headrace submit`: inputs, waiting, and every way in which a job is refused or fails."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import redis

from headrace.cli.output import Exit
from headrace.errors import FailureCode
from headrace.messages import Status, Tensor
from headrace.models.registry import Limits
from headrace_workers.engines.base import ItemError
from support.by_hand import HandService
from support.command_line import CountingEngine, Run
from support.service import PlainService


@pytest.fixture
async def by_hand(redis_url: str) -> AsyncIterator[HandService]:
    async with HandService(redis_url, "by-hand") as service:
        yield service


async def test_lines_of_stdin(service: PlainService, headrace: Run) -> None:
    ran = await headrace("submit", "echo", "-", "--json", stdin="erste\n\nzweite Zeile ü\r\nlast".encode())
    assert [answer["output"] for answer in ran.objects] == ["erste", "zweite Zeile ü", "last"]


async def test_a_tensor_shows_its_first_numbers(service: PlainService, engine: CountingEngine, headrace: Run) -> None:
    engine.answer = lambda _: Tensor(dtype="float32", shape=[8], data=struct.pack("<8f", *range(8)))
    assert "float32 [8]  0 1 2 3 4 5 …" in (await headrace("submit", "echo", "x")).out
    answer = (await headrace("submit", "echo", "x", "--json")).last["output"]
    assert answer == {"dtype": "float32", "shape": [8], "values": [float(n) for n in range(8)]}


async def test_labels_show_as_a_table(service: PlainService, engine: CountingEngine, headrace: Run) -> None:
    engine.answer = lambda _: [{"label": "POSITIVE", "score": 0.98765}, {"label": "[red]", "score": 0.01235}]
    lines = (await headrace("submit", "echo", "x")).out.splitlines()
    assert [line.split() for line in lines[1:]] == [["label", "score"], ["POSITIVE", "0.9877"], ["[red]", "0.0123"]]


async def test_an_answer_does_not_steer_the_terminal(service: PlainService, headrace: Run) -> None:
    ran = await headrace("submit", "echo", "\x1b[2Jgone\x07")
    assert "\x1b" not in ran.out
    assert r"\x1b[2Jgone\x07" in ran.out


async def test_bytes_and_nested_output_have_a_json_form(
    service: PlainService, engine: CountingEngine, headrace: Run
) -> None:
    engine.answer = lambda _: {"raw": b"\x00\xff", "deep": [[1, None, True]]}
    expected = {"raw": {"base64": "AP8="}, "deep": [[1, None, True]]}
    assert (await headrace("submit", "echo", "x", "--json")).last["output"] == expected


async def test_an_output_without_a_json_form_is_an_error(
    service: PlainService, engine: CountingEngine, headrace: Run
) -> None:
    engine.answer = lambda _: Tensor(dtype="float32", shape=[1], data=struct.pack("<f", float("nan")))
    assert (await headrace("submit", "echo", "x", "--json")).last["error"]["code"] == "not_finite"


async def test_params_are_json_or_text(by_hand: HandService, headrace: Run) -> None:
    from headrace.messages import unpack_payload

    options = ("--param", "k=3", "--param", 'list=["a", null]', "--param", "name=plain text", "--param", "e=a=b")
    assert (await headrace("submit", "by-hand", "x", "--no-wait", *options)).status == 0
    [entry] = await by_hand.take()
    assert unpack_payload(entry.payload)[1] == {"k": 3, "list": ["a", None], "name": "plain text", "e": "a=b"}
    assert (await headrace("submit", "by-hand", "x", "--param", "k")).status == Exit.USAGE


async def test_the_jobs_options_arrive(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace(
        *("submit", "by-hand", "x", "--no-wait", "--json", "--id", "my-id", "--priority", "high"),
        *("--deadline-s", "60", "--tenant", "me", "--inbox", "my-box"),
    )
    assert ran.last == {"id": "my-id", "model": "by-hand", "outcome": "accepted", "inbox": "my-box"}
    [entry] = await by_hand.take()
    envelope = entry.envelope
    assert (entry.priority, envelope.job_id, envelope.tenant, envelope.inbox) == (0, "my-id", "me", "my-box")
    assert envelope.deadline_ms - envelope.submitted_ms == 60_000


async def test_the_same_id_is_not_run_twice(service: PlainService, engine: CountingEngine, headrace: Run) -> None:
    command = ("submit", "echo", "x", "--id", "once", "--inbox", "box", "--json")
    first, second = await headrace(*command), await headrace(*command)
    assert first.last["output"] == second.last["output"] == "x"
    assert engine.ran == {"x": 1}


async def test_a_failed_job_is_exit_status_1(service: PlainService, engine: CountingEngine, headrace: Run) -> None:
    engine.answer = lambda value: (
        ItemError(FailureCode.INPUT_TOO_LONG, "513 tokens", hint="truncate") if value == "long" else value
    )
    ran = await headrace("submit", "echo", "short", "long", "--json")
    assert ran.status == Exit.FAILED
    assert [answer["status"] for answer in ran.objects] == ["ok", "error"]
    assert ran.last["error"] == {
        "code": "input_too_long",
        "message": "513 tokens",
        "hint": "truncate",
        "retryable": False,
    }
    assert "input_too_long: 513 tokens (truncate)" in (await headrace("submit", "echo", "long")).out


@pytest.mark.parametrize("status", [Status.EXPIRED, Status.CANCELLED, Status.DEAD])
async def test_every_other_ending_is_a_failure_too(by_hand: HandService, headrace: Run, status: Status) -> None:
    command = ("submit", "by-hand", "x", "--id", "it", "--inbox", "box", "--json")
    await headrace(*command, "--no-wait")
    await by_hand.fail(*await by_hand.take(), status=status)
    ran = await headrace(*command)
    assert (ran.status, ran.last["status"]) == (Exit.FAILED, str(status))


async def test_waiting_ends_in_time(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace("submit", "by-hand", "x", "y", "--timeout-s", "0.3", "--json")
    assert ran.status == Exit.TIMED_OUT
    assert [answer["error"]["code"] for answer in ran.objects] == ["result_timeout"] * 2
    assert "the job goes on" in ran.err


async def test_a_full_lane_is_waited_for_in_time(redis_url: str, headrace: Run) -> None:
    async with HandService(redis_url, "small", limits=Limits(lane_capacity=1)):
        assert (await headrace("submit", "small", "x", "--no-wait")).status == 0
        ran = await headrace("submit", "small", "y", "--timeout-s", "0.3", "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.TIMED_OUT, "queue_full")


async def test_a_full_redis_is_unavailable(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            ran = await headrace("submit", "by-hand", "x", "--json")
        finally:
            client.config_set("maxmemory", 0)
    assert (ran.status, ran.last["error"]["code"]) == (Exit.UNAVAILABLE, "redis_full")


async def test_a_consumed_answer_is_gone(service: PlainService, headrace: Run) -> None:
    await headrace("submit", "echo", "x", "--id", "once")
    ran = await headrace("submit", "echo", "x", "--id", "once", "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.FAILED, "result_gone")


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["by-hand"], b"", "there is no text to submit"),
        (["by-hand", "-"], b"\n\n", "there is no text to submit"),
        (["by-hand", "-"], b"good\n\xff\xfe\n", "line 2 of standard input is not UTF-8"),
        (["by-hand", "-"], b"x\n" * 10_001, "more than 10,000 texts"),
        (["by-hand", "x", "y", "--id", "one"], b"", "an id names one job"),
        (["by-hand", "x", "--id", "a b"], b"", "invalid job: id: "),
        (["by-hand", "x", "--priority", "urgent"], b"", "invalid job: priority: "),
        (["by-hand", "x", "--deadline-s", "-1"], b"", "invalid job: deadline_s: "),
        (["by-hand", "x", "--deadline-s", "nan"], b"", "invalid job: deadline_s: "),
        (["by-hand", "x", "--timeout-s", "inf"], b"", "inf is no length of time"),
        (["by-hand", "x", "--tenant", ""], b"", "invalid job: tenant: "),
        (["no model", "x"], b"", "invalid job: model: "),
        (["by-hand", "x", "--param", "a=NaN"], b"", "holds NaN"),
        (["by-hand", "\udcff"], b"", "surrogates not allowed"),
        (["by-hand", "x" * (1 << 20)], b"", "the limit is 1,048,576"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(
    by_hand: HandService, headrace: Run, arguments: list[str], stdin: bytes, says: str
) -> None:
    ran = await headrace("submit", *arguments, "--json", stdin=stdin)
    assert ran.status == Exit.USAGE
    assert says in ran.err
    assert says in ran.last["error"]["message"]
    assert (await headrace("status", "by-hand", "--json")).last["submitted"] == 0


async def test_attempts_are_asked_for(by_hand: HandService, headrace: Run) -> None:
    """One is what every job has; more go with the job."""
    await headrace("submit", "by-hand", "x", "--attempts", "3", "--no-wait")
    await headrace("submit", "by-hand", "y", "--no-wait")
    words = [entry.envelope.retry for entry in await by_hand.take()]
    assert words == ["3,1000,60000,engine_failed+pool_failed", "-"]
