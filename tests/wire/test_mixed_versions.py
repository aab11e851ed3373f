"""Old, present and future producers on one service at the same time, as in every upgrade that nobody notices."""

from __future__ import annotations

import pytest

from headrace import AsyncClient, FailureCode, Job, scripts
from headrace.keys import keys_of
from headrace.server.connection import commands, execute
from support.by_hand import HandService
from support.raw import envelope, write_entry
from support.service import PlainService
from support.waiting import eventually

MODEL = "m"

PREVIOUS = {f"previous-{n}": envelope(f"previous-{n}") for n in range(3)}
"""Before retry policies: an envelope has nine words."""
PRESENT = {f"present-{n}": envelope(f"present-{n}", retry="2,100,1000,engine_failed") for n in range(3)}
FUTURE = {f"future-{n}": envelope(f"future-{n}", retry="-", region="eu-1", flags="a=b;c") for n in range(3)}
"""Of the same version, with words that are not known here: a newer release may append them."""
BEYOND = {"beyond": envelope("beyond", version=2, retry="-", shape="other")}
"""Of a version whose payload this release cannot read."""


async def test_all_pass_side_by_side(redis_url: str) -> None:
    """Whatever an envelope has behind the words that are known; only a newer version is refused, for its job alone."""
    client = commands(redis_url)
    async with PlainService(redis_url, MODEL), AsyncClient(redis_url) as present:
        for job_id, text in (PREVIOUS | BEYOND | FUTURE | PRESENT).items():
            await write_entry(client, MODEL, text=text)
            assert (await present.run(Job(model=MODEL, input=job_id), timeout_s=10)).unwrap() == job_id

        async def answers() -> dict[bytes, tuple[bytes, bytes, bytes]]:
            rows = await execute(client, "XRANGE", keys_of(MODEL).inbox("raw"), "-", "+")
            heads = [(fields[1].split(b" "), fields[3]) for _, fields in rows]
            return {head[1]: (head[0], head[2], body) for head, body in heads} if len(rows) == 10 else {}

        found = await eventually(answers)
        version, status, body = found.pop(b"beyond")
        assert (version, status) == (b"2", b"error")  # in the words of who asked
        assert FailureCode.UNSUPPORTED_VERSION.encode() in body
        assert {job_id.decode() for job_id in found} == PREVIOUS.keys() | FUTURE.keys() | PRESENT.keys()
        assert {(version, status) for version, status, _ in found.values()} == {(b"1", b"ok")}
        audit = await present.audit(MODEL)
        assert (audit.submitted, audit.finished, audit.lost, audit.doubled) == (20, 20, 0, 0)
    await client.aclose()


@pytest.mark.parametrize("text", [*PREVIOUS.values(), *FUTURE.values()], ids=[*PREVIOUS, *FUTURE])
async def test_words_survive_what_hands_a_job_on(redis_url: str, text: bytes) -> None:
    """The next attempt has them, too: the release that knows them may be the one that runs it."""
    client = commands(redis_url)
    async with HandService(redis_url, MODEL) as service:
        await write_entry(client, MODEL, text=text)
        (entry,) = await service.take()
        await scripts.retry(client, MODEL, [scripts.GiveBack(entry.lane, entry.entry_id, entry.text, 0)])
        (again,) = await service.take()
        before, after = text.split(b" "), again.text.split(b" ")
        assert (after[4], before[:4] + before[5:]) == (b"2", after[:4] + after[5:])
        await service.answer(again)
    await client.aclose()
