"""`headrace submit --stream`: for people, for programs, on a terminal and on none, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from headrace.cli import stream_shows, streaming
from headrace.cli.output import Exit
from headrace.errors import FailureCode
from headrace.keys import keys_of
from headrace.messages import Status
from headrace.server.connection import execute
from support.by_hand import HandService
from support.by_hand_streams import HandStream
from support.command_line import Run, end, start
from support.waiting import eventually


@pytest.fixture
async def by_hand(redis_url: str) -> AsyncIterator[HandService]:
    async with HandService(redis_url, "by-hand") as service:
        yield service


async def taken(service: HandService, count: int) -> list[HandStream]:
    """So many decoders, in the order of their jobs."""
    found: list[HandStream] = []

    async def all_there() -> bool:
        found.extend(await HandStream.take(service, count))
        return len(found) == count

    await eventually(all_there)
    return found


async def test_one_answer_flows(by_hand: HandService, headrace: Run) -> None:
    running = asyncio.create_task(headrace("submit", "by-hand", "?", "--stream"))
    [decoder] = await taken(by_hand, 1)
    await decoder.say("Water ", "flows\x1b[2J ")
    await decoder.finish("downhill.\nAlways.")
    ran = await running
    assert (ran.status, ran.out) == (Exit.DONE, "Water flows\\x1b[2J downhill.\nAlways.\n")


async def test_further_choices_follow(by_hand: HandService, headrace: Run) -> None:
    running = asyncio.create_task(headrace("submit", "by-hand", "?", "--stream", "--param", "n=2"))
    [decoder] = await taken(by_hand, 1)
    await decoder.say("other", index=1)
    await decoder.say("first", index=0)
    await decoder.finish()
    assert (await running).out == "first\n[1] other\n"


async def test_programs_get_an_object_for_each_chunk_and_result(by_hand: HandService, headrace: Run) -> None:
    running = asyncio.create_task(headrace("submit", "by-hand", "a", "b", "--stream", "--json"))
    for decoder in await taken(by_hand, 2):
        await decoder.say("xy")
        await (decoder.finish("z") if decoder.chunks else decoder.finish())
    ran = await running
    chunks = [line["chunk"] for line in ran.objects if "chunk" in line]
    results = [line for line in ran.objects if "status" in line]
    assert [(chunk["index"], chunk["text"], chunk["tokens"]) for chunk in chunks] == [
        *[(0, "xy", [120, 121]), (0, "z", [])] * 2
    ]
    assert [result["output"]["choices"][0]["text"] for result in results] == ["xyz"] * 2
    assert all(chunk["cursor"] for chunk in chunks)


async def test_several_come_one_after_the_other_where_nobody_watches(by_hand: HandService, headrace: Run) -> None:
    running = asyncio.create_task(headrace("submit", "by-hand", "a", "b", "--stream"))
    first, second = await taken(by_hand, 2)
    await second.finish("second")
    await first.say("fi")
    await first.finish("rst")
    assert (await running).out == "[0] first\n[1] second\n"


async def test_several_have_a_line_each_on_a_terminal(
    by_hand: HandService, headrace: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    lines_of = stream_shows._Table._lines

    def recorded(table: stream_shows._Table) -> object:
        group = lines_of(table)
        shown.extend(str(line) for line in group.renderables)
        return group

    monkeypatch.setattr(stream_shows._Table, "_lines", recorded)
    monkeypatch.setattr(streaming, "shown", lambda count, output: stream_shows._Table(count))
    running = asyncio.create_task(headrace("submit", "by-hand", "a", "b", "--stream"))
    first, second = await taken(by_hand, 2)
    await second.say("half a\nsentence")
    await eventually(lambda: "[1] half a sentence …" in shown)
    await first.finish("whole")
    await second.finish()
    ran = await running
    assert "[0] whole" in shown
    assert ran.out.endswith("[0] whole\n[1] half a\nsentence\n")


async def test_a_failure_is_said_behind_what_there_is(by_hand: HandService, headrace: Run) -> None:
    for options in ((), ("--json",)):
        running = asyncio.create_task(headrace("submit", "by-hand", "?", "--stream", *options))
        [decoder] = await taken(by_hand, 1)
        await decoder.say("as far ")
        await decoder.fail(Status.ERROR, FailureCode.ENGINE_FAILED, rest="as it got")
        ran = await running
        assert ran.status == Exit.FAILED
        if options:
            assert ran.last["error"]["code"] == "engine_failed"
            assert ran.last["partial"]["choices"][0]["text"] == "as far as it got"
        else:
            assert ran.out == "as far as it got\n"
            assert "engine_failed: by hand" in ran.err


async def test_waiting_has_an_end(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace("submit", "by-hand", "?", "--stream", "--timeout-s", "0.2", "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.TIMED_OUT, "result_timeout")


async def test_what_nobody_waits_for_cannot_be_shown(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace("submit", "by-hand", "?", "--stream", "--no-wait")
    assert (ran.status, "cannot be shown" in ran.err) == (Exit.USAGE, True)


async def test_ctrl_c_cancels_the_jobs(by_hand: HandService, redis_url: str) -> None:
    """One runs and is asked for, one waits and never runs."""
    process = await start("submit", "by-hand", "a", "b", "--stream", "--redis-url", redis_url)
    [decoder] = await taken(by_hand, 1)
    await decoder.say("here")

    async def both_are_there() -> bool:
        return int(await execute(by_hand.redis, "XLEN", keys_of("by-hand").lanes[1])) == 2

    await eventually(both_are_there)
    process.send_signal(signal.SIGINT)
    ran = await end(process)
    assert ran.status == Exit.INTERRUPTED
    assert "called off 2 job(s)" in ran.err
    assert [entry.envelope.job_id for entry in await by_hand.take()] == []
    assert (await HandStream.begin(by_hand, decoder.entry)).outcome.name == "CANCELLING"
