"""`headrace results`: cursors, following, and entries that cannot be read."""

from __future__ import annotations

import asyncio
import signal

import pytest
import redis

from headrace.cli.output import Exit
from headrace.keys import keys_of
from support.by_hand import HandService
from support.command_line import Run, end, start
from support.service import PlainService


async def test_an_empty_inbox_has_no_results(echo_service: PlainService, headrace: Run) -> None:
    ran = await headrace("results", "echo", "nothing-here", "--json")
    assert (ran.status, ran.out) == (0, "")


async def test_people_see_the_cursor_too(echo_service: PlainService, headrace: Run) -> None:
    await headrace("submit", "echo", "a text", "--inbox", "box")
    cursor = (await headrace("results", "echo", "box", "--json")).last["cursor"]
    ran = await headrace("results", "echo", "box")
    assert ran.out.startswith(f"{cursor}  ")
    assert "a text" in ran.out
    assert "1 entries in inbox box of echo" in ran.err


async def test_following_prints_what_comes(echo_service: PlainService, headrace: Run, redis_url: str) -> None:
    """`--follow` prints answers as they come; Ctrl-C ends it."""
    process = await start("results", "echo", "box", "--follow", "--json", "-u", redis_url)
    assert process.stdout is not None
    for n in range(3):
        await headrace("submit", "echo", f"text {n}", "--inbox", "box", "--no-wait")
        line = await asyncio.wait_for(process.stdout.readline(), timeout=20)
        assert f'"output": "text {n}"' in line.decode()
    process.send_signal(signal.SIGINT)
    ran = await end(process)
    assert (ran.status, ran.last["error"]["code"]) == (Exit.INTERRUPTED, "interrupted")


async def test_following_stops_when_it_is_idle(echo_service: PlainService, headrace: Run) -> None:
    await headrace("submit", "echo", "a text", "--inbox", "box")
    ran = await headrace("results", "echo", "box", "--idle-s", "0.1", "--json")
    assert (ran.status, len(ran.objects)) == (0, 1)


async def test_a_failed_job_is_exit_status_1(redis_url: str, headrace: Run) -> None:
    async with HandService(redis_url) as service:
        await headrace("submit", "by-hand", "x", "--inbox", "box", "--no-wait")
        await service.fail(*await service.take())
        ran = await headrace("results", "by-hand", "box", "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.FAILED, "engine_failed")


async def test_an_entry_that_cannot_be_read_stops_nothing(
    echo_service: PlainService, headrace: Run, redis_url: str
) -> None:
    """Newer than this client, or no answer at all: said so, and the next is read."""
    box = keys_of("echo").inbox("box")
    with redis.Redis.from_url(redis_url) as client:
        client.xadd(box, {"e": "9 a ok 1", "r": b"\x80"})
        client.xadd(box, {"other": "x"})
        client.xadd(box, {"e": "1 b ok 1", "r": b"\xc1"})
        client.xadd(box, {"e": "1 c chunk 1", "r": b"\x80"})
        client.expire(box, 60)
    await headrace("submit", "echo", "good", "--inbox", "box")

    ran = await headrace("results", "echo", "box", "--json")
    assert ran.status == Exit.FAILED
    assert [line["error"]["code"] for line in ran.objects[:3]] == ["unsupported_version", "decode", "decode"]
    assert [line["cursor"] for line in ran.objects] == sorted(line["cursor"] for line in ran.objects)
    assert ran.last["output"] == "good"
    assert len(ran.objects) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["echo", "no box"], "cannot be the name of an inbox"),
        (["echo", "box", "--after", "yesterday"], "is no cursor"),
        (["echo", "box", "--after", "1-2-3"], "is no cursor"),
        (["echo", "box", "--after", "$"], "goes with --follow"),
        (["echo", "box", "--idle-s", "-1"], "--idle-s"),
        (["echo"], "Missing argument 'INBOX'"),
    ],
)
async def test_bad_input(headrace: Run, arguments: list[str], says: str) -> None:
    ran = await headrace("results", *arguments, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "usage")
    assert says in ran.err
