"""A decoder without a model: the test says which pieces of text a job's stream has, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from headrace import AsyncClient, AsyncStream, Job, scripts
from headrace.errors import FailureCode
from headrace.messages import LaneEntry, Status, pack_answer, pack_chunk, pack_failure, unpack_chunk
from headrace.scripts import Answer, Begun, ChunkOutcome, Delivery, Started, StartOutcome
from support.by_hand import HandService

__all__ = ["MODEL", "HandStream", "generation", "job", "opened", "rest_of"]

MODEL = "by-hand"
"""Whose jobs those of `job` are."""


def generation(*texts: str, finish_reason: str = "stop") -> dict[str, Any]:
    """The output of a job whose tokens are the code points of its text."""
    choices = [{"index": n, "text": text, "finish_reason": finish_reason} for n, text in enumerate(texts)]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens, "cached_tokens": 0}
    return {"choices": choices, "usage": usage}


class HandStream:
    """One attempt to answer a job: START was called, and what it said is here. A token is a code point."""

    def __init__(self, service: HandService, entry: LaneEntry, owner: str, started: Started) -> None:
        self._service = service
        self.entry = entry
        self.owner = owner
        self.outcome = started.outcome
        self.delivered = [unpack_chunk(body) for body in started.chunks]
        self.chunks = len(started.chunks)
        self.texts: dict[int, str] = {}
        for chunk in self.delivered:
            self.texts[chunk.index] = self.texts.get(chunk.index, "") + chunk.text

    @classmethod
    async def begin(
        cls, service: HandService, entry: LaneEntry, *, streams: bool = True, owner: str | None = None
    ) -> Self:
        """Begin to run a job that was dispatched just now."""
        owner = owner or scripts.new_owner(time.time_ns() // 1_000_000)
        begun = Begun(entry.lane, entry.entry_id, entry.envelope.job_id, streams)
        [started] = await scripts.start(service.redis, service.model, owner, [begun])
        return cls(service, entry, owner, started)

    @classmethod
    async def take(cls, service: HandService, count: int = 1) -> Sequence[Self]:
        """Begin to run jobs that wait."""
        streams = [await cls.begin(service, entry) for entry in await service.take(count)]
        assert all(stream.outcome is StartOutcome.YOURS for stream in streams)
        return streams

    def next_body(self, text: str, *, index: int = 0) -> bytes:
        """The body of the chunk that says `text` behind what was said."""
        return pack_chunk(index, before=len(self.texts.get(index, "")), tokens=[ord(one) for one in text], text=text)

    async def write(self, body: bytes, *, before: int | None = None) -> ChunkOutcome:
        """CHUNK, once."""
        delivery = Delivery(self.owner, self.entry.envelope, self.chunks if before is None else before, body)
        [outcome] = await scripts.chunk(self._service.redis, self._service.model, [delivery])
        return outcome

    async def say(self, *pieces: str, index: int = 0) -> ChunkOutcome:
        """Deliver pieces of text, each as a chunk; the outcome of the last."""
        outcome = ChunkOutcome.WRITTEN
        for piece in pieces:
            outcome = await self.write(self.next_body(piece, index=index))
            if outcome in (ChunkOutcome.WRITTEN, ChunkOutcome.CANCELLING):
                self.chunks += 1
                self.texts[index] = self.texts.get(index, "") + piece
        return outcome

    def output(self, rest: str = "", **fields: Any) -> dict[str, Any]:
        """What was said, and what follows."""
        texts = [self.texts.get(index, "") + rest for index in range(max(self.texts, default=0) + 1)]
        return generation(*texts, **fields)

    async def finish(self, rest: str = "") -> bool:
        """Answer the job; False if it was not this attempt's to answer."""
        return await self._complete(Status.OK, pack_answer(self.output(rest)))

    async def fail(
        self, status: Status = Status.CANCELLED, code: FailureCode = FailureCode.CANCELLED, *, rest: str = ""
    ) -> bool:
        """End the job before its time, with what there is of it."""
        partial = self.output(rest, finish_reason=str(status))
        return await self._complete(status, pack_failure(code, "by hand", partial=partial))

    async def _complete(self, status: Status, body: bytes) -> bool:
        answer = Answer(self.entry.lane, self.entry.entry_id, self.entry.text, status, body, self.owner)
        [ended] = await scripts.complete(self._service.redis, self._service.model, [answer])
        return ended


def job(**fields: object) -> Job:
    """A job of `MODEL`, with these fields besides."""
    return Job(model=MODEL, input="?", **fields)


async def opened(client: AsyncClient, service: HandService, **fields: object) -> tuple[AsyncStream, HandStream]:
    """A job that is watched, and the decoder that answers it."""
    stream = await client.stream(job(**fields), timeout_s=5).start()
    [decoder] = await HandStream.take(service)
    return stream, decoder


async def rest_of(stream: AsyncStream) -> str:
    """What is still to come of its text."""
    return "".join([piece async for piece in stream])
