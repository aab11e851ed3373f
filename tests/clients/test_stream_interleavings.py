"""Many owners of the same jobs at once, in any order: what a consumer reads has no gap and no repeat.

Replicas are dispatched jobs, are held up, deliver, die, end jobs or try to; jobs are handed back and called off. Every
replica says other words, so that text of one where another's should be is seen. A control without the fence sees it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace import AsyncClient, DecodeError, Job, Result, scripts
from headrace.inboxes.reader import parse_reply
from headrace.keys import keys_of
from headrace.messages import Chunk, LaneEntry
from headrace.messages.chunk import unpack_chunk
from headrace.messages.inbox import InboxEntry
from headrace.scripts import ChunkOutcome, GiveBack, Script, StartOutcome, retry
from headrace.server.connection import execute
from headrace.streaming.progress import StreamProgress
from support.by_hand import HandService
from support.by_hand_streams import HandStream

MODEL = "by-hand"
KEYS = keys_of(MODEL)
JOBS = ("a", "b", "c")


class World:
    """Some jobs and all that may happen to them, one random thing after the other."""

    def __init__(self, service: HandService, client: AsyncClient, chance: random.Random) -> None:
        self._service, self._client, self._chance = service, client, chance
        self._dispatched: list[tuple[LaneEntry, str]] = []
        self._replicas: list[HandStream] = []
        self._clock_ms = 1000

    async def run(self, steps: int) -> None:
        await self._client.submit_many([Job(model=MODEL, input="?", id=job_id, inbox="box") for job_id in JOBS])
        for _ in range(steps):
            things = [self._dispatch, self._begin, self._say, self._say, self._say, self._replay, self._end]
            rare = [self._hand_back, self._cancel, self._lose]
            await self._chance.choice(rare if self._chance.random() < 0.06 else things)()
        while not await self._all_ended():
            await self._dispatch()
            await self._begin()
            for replica in self._replicas[-3:]:
                await replica.finish("end")

    async def _all_ended(self) -> bool:
        return (await self._client.audit(MODEL)).live == 0

    async def _dispatch(self) -> None:
        """A router sends what it holds, once more or for the first time."""
        entries = [*await self._service.take(again=True), *await self._service.take()]
        for entry in entries:
            self._clock_ms += 1
            self._dispatched.append((entry, scripts.new_owner(self._clock_ms)))

    async def _begin(self) -> None:
        """Replicas begin what they were sent, in any order: some were held up."""
        self._chance.shuffle(self._dispatched)
        for entry, owner in self._dispatched[:3]:
            replica = await HandStream.begin(self._service, entry, owner=owner)
            if replica.outcome is not StartOutcome.NOT_YOURS:
                self._replicas.append(replica)
        del self._dispatched[:3]

    def _some(self) -> HandStream | None:
        return self._chance.choice(self._replicas) if self._replicas else None

    async def _say(self) -> None:
        """A replica delivers words of its own; one that is fenced may try again."""
        if replica := self._some():
            await replica.say(f"{replica.owner[-4:]}.{replica.chunks} ")

    async def _replay(self) -> None:
        """A reply was lost, and redis-py sends the call again."""
        if replica := self._some():
            body = replica.next_body("twice ")
            outcomes = [await replica.write(body) for _ in range(2)]
            assert outcomes[0] == outcomes[1]
            if outcomes[0] in (ChunkOutcome.WRITTEN, ChunkOutcome.CANCELLING):
                replica.chunks += 1
                replica.texts[0] = replica.texts.get(0, "") + "twice "

    async def _end(self) -> None:
        if self._chance.random() < 0.3 and (replica := self._some()):
            await (replica.finish("end") if self._chance.random() < 0.7 else replica.fail(rest="end"))

    async def _hand_back(self) -> None:
        if replica := self._some():
            entry = replica.entry
            await retry(self._service.redis, MODEL, [GiveBack(*entry[:3], 0)])

    async def _cancel(self) -> None:
        await self._client.cancel(self._chance.choice(JOBS), model=MODEL)

    async def _lose(self) -> None:
        """A replica dies."""
        if replica := self._some():
            self._replicas.remove(replica)


async def read_all(client: Any) -> dict[str, tuple[str, Result]]:
    """What a consumer has of each job at its end: the pieces, and the terminal entry.

    Raises:
        DecodeError: a gap; repeats are counted as errors here, since nobody wrote twice.
    """
    found: dict[str, tuple[str, Result]] = {}
    progress = {job_id: StreamProgress() for job_id in JOBS}
    seen = dict.fromkeys(JOBS, "")
    for stored in parse_reply(await execute(client, "XREAD", "STREAMS", KEYS.inbox("box"), "0")):
        entry = InboxEntry.parse("box", *stored)
        assert entry.job_id not in found, "nothing follows the terminal entry"
        if entry.status == "chunk":
            chunks: list[Chunk | None] = [progress[entry.job_id].take(entry.entry_id, unpack_chunk(entry.body))]
        else:
            result = entry.to_result(MODEL)
            chunks = list(progress[entry.job_id].rest(result))
        for chunk in chunks:
            if chunk is None:
                raise DecodeError("a repeat")
            seen[entry.job_id] += chunk.text
        if entry.status != "chunk":
            found[entry.job_id] = seen[entry.job_id], result
    return found


async def check(client: Any) -> None:
    """The pieces add up to the answer; jobs that were called off before anybody ran them again have none."""
    found = await read_all(client)
    assert found.keys() == set(JOBS)
    for seen, result in found.values():
        if result.text is not None and seen != result.text:
            raise DecodeError(f"{seen!r} was read, and the answer is {result.text!r}")
    assert await execute(client, "KEYS", KEYS.chunks("*")) == []


@pytest.fixture
async def client(redis_url: str, service: HandService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as client:
        yield client


@pytest.mark.parametrize("seed", range(24))
async def test_no_gap_and_no_repeat(service: HandService, client: AsyncClient, seed: int) -> None:
    await World(service, client, random.Random(seed)).run(120)
    await check(service.redis)


SABOTAGE = {
    "owner of a chunk": ("chunk", "if owned ~= owner then return 0 end", ""),
    "owner of an answer": ("complete", "return owned and owned ~= owner", "return false"),
    "replay": ("chunk", "if there == before then", "if true then"),
}


@pytest.mark.leaves_jobs
@pytest.mark.parametrize("what", SABOTAGE)
async def test_without_the_fence_it_is_seen(
    service: HandService, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each line that keeps a stream whole, taken out: a few runs are enough to see it."""
    name, line, other = SABOTAGE[what]
    script: Script = getattr(scripts, name.upper())
    assert script.text.count(line) == 1
    broken = script.text.replace(line, other)
    monkeypatch.setattr(script, "text", broken)
    monkeypatch.setattr(script, "sha", str(await service.redis.script_load(broken)))
    with pytest.raises((DecodeError, AssertionError)):  # noqa: PT012
        for seed in range(20):
            await service.redis.flushall()
            await service.__aenter__()
            await World(service, client, random.Random(seed)).run(120)
            await check(service.redis)
