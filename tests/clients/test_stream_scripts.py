"""START and CHUNK: who owns a stream, what he is told, and that a predecessor who wakes up changes nothing."""

from __future__ import annotations

import itertools

import pytest
from redis.exceptions import ResponseError

from headrace import AsyncClient, Job, Status, scripts
from headrace.codec import MAX_PAYLOAD_BYTES
from headrace.errors import FailureCode
from headrace.keys import keys_of
from headrace.messages import LaneEntry, pack_answer
from headrace.messages.inbox import InboxEntry
from headrace.scripts import Begun, ChunkOutcome, Delivery, GiveBack, RetryOutcome, StartOutcome, retry
from headrace.server.connection import execute
from support.by_hand import HandService
from support.by_hand_streams import HandStream

MODEL = "by-hand"
KEYS = keys_of(MODEL)


async def submitted(client: AsyncClient, service: HandService, job_id: str = "a") -> LaneEntry:
    """A job that was taken and not begun."""
    await client.submit(Job(model=MODEL, input="?", id=job_id, inbox="box"))
    [entry] = await service.take()
    return entry


async def delivered(service: HandService) -> list[InboxEntry]:
    """What lies in the inbox."""
    return [
        InboxEntry.parse("box", *entry) for entry in await execute(service.redis, "XRANGE", KEYS.inbox("box"), "-", "+")
    ]


async def test_a_successor_is_told_what_was_delivered(client: AsyncClient, service: HandService) -> None:
    """Byte for byte as it lies in the inbox; he goes on behind it, and the first one may do nothing any more."""
    entry = await submitted(client, service)
    first = await HandStream.begin(service, entry, owner="1000-first")
    assert (first.outcome, first.delivered) == (StartOutcome.YOURS, [])
    assert await first.say("Water ", "flows ") is ChunkOutcome.WRITTEN

    second = await HandStream.begin(service, entry, owner="2000-second")

    bodies = [entry.body for entry in await delivered(service)]
    assert await execute(service.redis, "LRANGE", KEYS.chunks("a"), 0, -1) == [b"2000-second", *bodies]
    assert second.texts == {0: "Water flows "}
    assert await first.say("uphill.") is ChunkOutcome.FENCED
    assert not await first.finish("uphill.")
    assert not await first.fail(Status.ERROR, FailureCode.ENGINE_FAILED)
    assert await second.say("down") is ChunkOutcome.WRITTEN
    assert await second.finish("hill.")
    assert [entry.status for entry in await delivered(service)] == ["chunk", "chunk", "chunk", "ok"]
    assert (await client.result("a", model=MODEL)).text == "Water flows downhill."
    assert not await execute(service.redis, "EXISTS", KEYS.chunks("a"))


async def test_one_that_was_held_up_takes_nothing_from_his_successor(client: AsyncClient, service: HandService) -> None:
    """He was sent the job earlier, and begins it later."""
    entry = await submitted(client, service)
    successor = await HandStream.begin(service, entry, owner="2000-b")
    await successor.say("x")

    assert (await HandStream.begin(service, entry, owner="1999-a")).outcome is StartOutcome.NOT_YOURS

    assert await successor.say("y") is ChunkOutcome.WRITTEN
    assert (await HandStream.begin(service, entry, owner="2000-c")).outcome is StartOutcome.YOURS
    assert await successor.say("z") is ChunkOutcome.FENCED
    await service.answer(entry)


async def test_a_replay_changes_nothing(client: AsyncClient, service: HandService) -> None:
    """START tells the owner the same again, CHUNK says that the chunk is there."""
    entry = await submitted(client, service)
    first = await HandStream.begin(service, entry, owner="1-a")
    body = first.next_body("abc")
    assert [await first.write(body) for _ in range(3)] == [ChunkOutcome.WRITTEN] * 3
    again = await HandStream.begin(service, entry, owner="1-a")
    assert again.texts == {0: "abc"}
    assert await again.say("d", "e") is ChunkOutcome.WRITTEN
    assert await again.write(body, before=0) is ChunkOutcome.WRITTEN
    assert len(await delivered(service)) == 3
    assert await again.finish()
    assert not await again.finish()


async def test_a_whole_call_is_replayed(client: AsyncClient, service: HandService) -> None:
    """Several chunks of a job go in one call, in their order."""
    entry = await submitted(client, service)
    owner = scripts.new_owner(1)
    await HandStream.begin(service, entry, owner=owner)
    chunks = [Delivery(owner, entry.envelope, n, bytes([n])) for n in range(5)]
    for _ in range(2):
        assert await scripts.chunk(service.redis, MODEL, chunks) == [ChunkOutcome.WRITTEN] * 5
    assert [entry.body for entry in await delivered(service)] == [bytes([n]) for n in range(5)]
    await service.answer(entry)


async def test_an_owner_that_asks_to_cancel_is_heard_with_the_next_chunk(
    client: AsyncClient, service: HandService
) -> None:
    entry = await submitted(client, service)
    first = await HandStream.begin(service, entry)
    await first.say("ab")
    await client.cancel("a", model=MODEL)
    assert await first.say("cd") is ChunkOutcome.CANCELLING
    second = await HandStream.begin(service, entry)
    assert (second.outcome, second.texts) == (StartOutcome.CANCELLING, {0: "abcd"})
    assert await first.say("ef") is ChunkOutcome.FENCED, "else the partial text would lack something of what was seen"
    assert await second.fail(rest="")
    assert (await client.result("a", model=MODEL)).text == "abcd"


async def test_a_job_that_is_not_streamed_has_no_list(client: AsyncClient, service: HandService) -> None:
    entry = await submitted(client, service)
    stream = await HandStream.begin(service, entry, streams=False)
    assert stream.outcome is StartOutcome.YOURS
    assert not await execute(service.redis, "EXISTS", KEYS.chunks("a"))
    await client.cancel("a", model=MODEL)
    assert (await HandStream.begin(service, entry, streams=False)).outcome is StartOutcome.CANCELLING
    assert await stream.finish("abc"), "an owner is no hindrance where nothing was streamed"


async def test_what_has_ended_is_nobody_s(client: AsyncClient, service: HandService) -> None:
    """However it ended: answered, called off, handed back; and what never was."""
    answered, cancelled, retried = [await submitted(client, service, job_id) for job_id in "abc"]
    streams = [await HandStream.begin(service, entry, owner="1-a") for entry in (answered, cancelled, retried)]
    await service.answer(answered)
    back = [GiveBack(*entry[:3], delay_ms) for entry, delay_ms in ((cancelled, 0), (retried, 60_000))]
    assert await retry(service.redis, MODEL, back) == [RetryOutcome.AGAIN] * 2
    assert await client.cancel_many(["b", "c"], model=MODEL) == ["cancelled"] * 2
    for stream in streams:
        assert await stream.say("x") is ChunkOutcome.FENCED
        assert not await stream.finish()
        assert (await HandStream.begin(service, stream.entry)).outcome is StartOutcome.NOT_YOURS
    assert await execute(service.redis, "KEYS", KEYS.chunks("*")) == []
    [never] = await scripts.start(service.redis, "nobody-has-registered-this", "1-a", [Begun(1, "1-1", "x", True)])
    assert never.outcome is StartOutcome.NOT_YOURS


async def test_a_server_that_lost_its_last_writes(client: AsyncClient, service: HandService) -> None:
    """The owner is told so rather than fenced: nobody else would go on with the job. He starts it again."""
    entry = await submitted(client, service)
    first = await HandStream.begin(service, entry, owner="1-a")
    await first.say("a", "b", "c")
    await execute(service.redis, "LTRIM", KEYS.chunks("a"), 0, 1)
    assert await first.say("d") is ChunkOutcome.LOST
    again = await HandStream.begin(service, entry, owner="1-a")
    assert again.texts == {0: "a"}
    assert await again.write(again.next_body("other"), before=0) is ChunkOutcome.LOST, "it is not what is there"
    await execute(service.redis, "DEL", KEYS.chunks("a"))
    assert await again.say("b") is ChunkOutcome.LOST
    await service.answer(entry)
    assert await again.say("b") is ChunkOutcome.FENCED


async def test_the_inbox_and_the_answer_have_their_time(client: AsyncClient, service: HandService) -> None:
    """The list lives as long as its job; the inbox from the last chunk on."""
    entry = await submitted(client, service)
    stream = await HandStream.begin(service, entry)
    await stream.say("a")
    assert await execute(service.redis, "PTTL", KEYS.chunks("a")) == -1
    assert 3_500_000 < await execute(service.redis, "PTTL", KEYS.inbox("box")) <= 3_600_000
    await service.answer(entry)


async def test_lists_go_with_their_jobs_in_one_call(client: AsyncClient, service: HandService) -> None:
    """Those of a call whose jobs somebody had ended before stay with whoever has them now."""
    await client.submit_many([Job(model=MODEL, input=n, id=str(n), inbox="box") for n in range(128)])
    entries = await service.take()
    for entry in entries:
        await (await HandStream.begin(service, entry, owner="1-a")).say("x")
    answers = [
        scripts.Answer(entry.lane, entry.entry_id, entry.text, "ok", pack_answer(1), owner)
        for entry, owner in zip(entries, itertools.cycle(["1-a", "1-other", ""]), strict=False)
    ]
    ended = await scripts.complete(service.redis, MODEL, answers)
    assert ended == [answer.owner != "1-other" for answer in answers]
    assert len(await execute(service.redis, "KEYS", KEYS.chunks("*"))) == ended.count(False)
    assert [entry.status for entry in await delivered(service)][128:] == ["ok"] * ended.count(True)
    await service.answer_all()


async def test_a_refused_answer_touches_nothing_whatever_else_is_in_the_call(
    client: AsyncClient, service: HandService
) -> None:
    """One of its lane had ended before, so that the others are looked at one by one."""
    ended, refused, good = [await submitted(client, service, job_id) for job_id in "abc"]
    for entry in (ended, refused, good):
        await HandStream.begin(service, entry, owner="2-b")
    await service.answer(ended)
    answers = [
        scripts.Answer(entry.lane, entry.entry_id, entry.text, "ok", pack_answer(1), owner)
        for entry, owner in ((ended, "2-b"), (refused, "1-a"), (good, "2-b"))
    ]
    assert await scripts.complete(service.redis, MODEL, answers) == [False, False, True]
    assert (await client.status("b", model=MODEL)).deliveries == 1
    await service.answer(refused)


# -- arguments ------------------------------------------------------------------------------------------------------

START = [b"1-a", b"1", b"1-1", b"job-1", b"1"]
CHUNK = [b"1-a", b"box", b"1 job-1 chunk 1", b"0", b"\x80"]
LONG = b"x" * 65


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, b""), (0, b"a-1"), (0, b"1-"), (0, b"1"), (0, b"1-a b"), (0, b"1-" + LONG), (1, b"24"), (1, b"-1"),
        (1, b""), (1, b"one"), (2, b"1"), (2, b"-"), (2, b"+"), (2, b"1-1 2-2"), (2, b"1" * 41 + b"-1"), (3, b""),
        (3, b"a b"), (3, b"a{b}"), (3, LONG), (4, b""), (4, b"2"), (4, b"true"),
    ],
)  # fmt: skip
async def test_what_start_refuses(client: AsyncClient, service: HandService, place: int, wrong: bytes) -> None:
    entry = await submitted(client, service, "job-1")
    arguments = [START[0], str(entry.lane).encode(), entry.entry_id.encode(), b"job-1", b"1", *START[1:]]
    arguments[place + (4 if place else 0)] = wrong  # in the second job, behind a good one
    await refused(service, scripts.START, arguments)
    assert not await execute(service.redis, "EXISTS", KEYS.chunks("job-1"))
    await service.answer(entry)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, b""), (0, LONG), (0, b"a b"), (1, b""), (1, b"a b"), (1, b"a{b}"), (2, b""), (2, b"1 job-1 ok 1"),
        (2, b"1 job-1 chunk"), (2, b"1 job-1 chunk 1 more"), (2, b"one job-1 chunk 1"), (2, b"1 a b chunk 1"),
        (2, b"1 " + LONG + b" chunk 1"), (3, b""), (3, b"-1"), (3, b"1.5"), (3, b"1" * 10),
        (4, b"x" * (MAX_PAYLOAD_BYTES + 1)),
    ],
)  # fmt: skip
async def test_what_chunk_refuses(client: AsyncClient, service: HandService, place: int, wrong: bytes) -> None:
    entry = await submitted(client, service, "job-1")
    await HandStream.begin(service, entry, owner="1-a")
    arguments = [*CHUNK, *CHUNK]
    arguments[place + 5] = wrong
    await refused(service, scripts.CHUNK, arguments)
    assert await delivered(service) == []
    await service.answer(entry)


async def refused(service: HandService, script: scripts.Script, arguments: list[bytes]) -> None:
    with pytest.raises(ResponseError, match=rf"^{script.name.upper()} "):
        await service.redis.eval(script.text, 1, KEYS.prefix, *arguments)


@pytest.mark.parametrize("count", [0, 1, 3, 6])
async def test_the_number_of_arguments(service: HandService, count: int) -> None:
    for script, arguments in ((scripts.START, START), (scripts.CHUNK, CHUNK)):
        given = (arguments * 2)[:count]
        await refused(service, script, given)


async def test_no_call_does_more_than_the_others(service: HandService) -> None:
    await refused(service, scripts.START, [START[0], *START[1:] * 129])
    await refused(service, scripts.CHUNK, CHUNK * 129)
