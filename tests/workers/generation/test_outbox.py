"""Chunks that wait to be written: put together by choice, in order, and never larger than an entry may be; and when
they are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.codec import MAX_PAYLOAD_BYTES, pack, unpack
from headrace.messages import Fate
from headrace.scripts import ChunkOutcome, Delivery
from headrace.tasks import end_task
from headrace_workers.engines.base import Prepared
from headrace_workers.generation import outbox
from headrace_workers.generation.outbox import Outbox, merge
from headrace_workers.generation.served_job import ServedJob
from support.waiting import eventually


def chunk(choice: int, before: int, *tokens: int, logprobs: bool = False) -> dict[str, Any]:
    said: dict[str, Any] = {"i": choice, "n": before, "tokens": list(tokens), "text": "".join(f"{n} " for n in tokens)}
    return said | ({"logprobs": [{"token": str(token)} for token in tokens]} if logprobs else {})


def merged(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for one in chunks:
        merge(pieces, one)
    return pieces


def test_the_tokens_of_a_choice_become_one_chunk() -> None:
    assert merged(chunk(0, 4, 7), chunk(0, 5, 8), chunk(0, 6, 9)) == [chunk(0, 4, 7, 8, 9)]


def test_each_choice_has_a_chunk_of_its_own() -> None:
    assert merged(chunk(0, 0, 1), chunk(1, 0, 2), chunk(0, 1, 3)) == [chunk(0, 0, 1, 3), chunk(1, 0, 2)]


def test_logprobs_go_with_their_tokens() -> None:
    assert merged(chunk(0, 0, 1, logprobs=True), chunk(0, 1, 2, logprobs=True)) == [chunk(0, 0, 1, 2, logprobs=True)]


def test_what_was_handed_over_is_left_as_it_was() -> None:
    """A chunk is an event of the engine's, which may have kept it."""
    first = chunk(0, 0, 1)
    merged(first, chunk(0, 1, 2))
    assert first == chunk(0, 0, 1)


def test_a_long_outage_makes_several_chunks_each_of_which_fits_an_entry() -> None:
    """With twenty alternatives to each token and their bytes."""
    alternatives = [{"token": "x" * 16, "logprob": -0.123456789, "bytes": [255] * 16}] * 20
    some = [
        {"i": 0, "n": n, "tokens": [n], "text": "x", "logprobs": [{"token": "x", "top_logprobs": alternatives}]}
        for n in range(3000)
    ]
    pieces = merged(*some)

    assert [piece["n"] for piece in pieces] == list(range(0, 3000, 256))
    assert all(len(pack(piece)) < MAX_PAYLOAD_BYTES for piece in pieces)


@given(st.lists(st.integers(0, 2), max_size=50))
def test_nothing_is_lost_doubled_or_out_of_order(choices: list[int]) -> None:
    counts = [0, 0, 0]
    said: list[list[int]] = [[], [], []]
    pieces: list[dict[str, Any]] = []
    for token, choice in enumerate(choices):
        merge(pieces, chunk(choice, counts[choice], token))
        counts[choice] += 1
        said[choice].append(token)

    for choice in range(3):
        own = [piece for piece in pieces if piece["i"] == choice]
        assert [token for piece in own for token in piece["tokens"]] == said[choice]
        assert [piece["n"] for piece in own] == [sum(len(p["tokens"]) for p in own[:n]) for n in range(len(own))]


# -- when they are written ----------------------------------------------------------------------------------


class Desk:
    """An outbox whose calls are noted: each is the names of the jobs whose chunks, or endings, it has written."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.tokens: dict[str, list[list[int]]] = {}
        nobody: Any = lambda *_: None  # noqa: E731
        self.outbox = Outbox(cast(Any, None), refused=nobody, cancelled=nobody, ended=nobody)

    async def write_chunks(self, _client: Any, _model: str, chunks: Sequence[Delivery]) -> list[ChunkOutcome]:
        self.calls.append("+".join(delivery.owner for delivery in chunks))
        for delivery in chunks:
            self.tokens.setdefault(delivery.owner, []).append(unpack(delivery.body)["tokens"])
        return [ChunkOutcome.WRITTEN] * len(chunks)

    async def write_endings(self, _client: Any, _model: str, endings: Sequence[str]) -> list[Fate]:
        self.calls.append("end of " + "+".join(endings))
        return [Fate.ANSWERED] * len(endings)

    def job(self, name: str, *, streams: bool = True, begun: bool = True) -> ServedJob:
        """One that has chunks in Redis already, unless it has not `begun`."""
        some: Any = SimpleNamespace()
        item = Prepared(1, SimpleNamespace(streams=streams))
        return Job(some, 0, "model", some, some, name, some, "", item=item, written=int(begun))


class Job(ServedJob):
    def ending(self) -> Any:
        return self.owner


@asynccontextmanager
async def writing(monkeypatch: pytest.MonkeyPatch, *, shortest_s: float = 0.0) -> AsyncIterator[Desk]:
    """A desk that has just written, and gathers for a minute unless there is something that cannot wait."""
    desk = Desk()
    monkeypatch.setattr(outbox, "write_chunks", desk.write_chunks)
    monkeypatch.setattr(outbox, "write_endings", desk.write_endings)
    task = asyncio.create_task(desk.outbox.run())
    desk.outbox.add(desk.job("before"), chunk(0, 0, 1))
    await eventually(lambda: desk.calls == ["before"])
    desk.calls.clear()
    monkeypatch.setattr(outbox, "_LONGEST_S", 60.0)
    monkeypatch.setattr(outbox, "_SHORTEST_S", shortest_s)
    try:
        yield desk
    finally:
        await end_task(task)


async def test_what_goes_on_is_gathered_until_a_job_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody waits for a first token. What others have said leaves with it, for a call costs the same."""
    async with writing(monkeypatch) as desk:
        going_on = desk.job("a")
        for n in range(3):
            desk.outbox.add(going_on, chunk(0, n, n))
            await asyncio.sleep(0)
        assert desk.calls == []

        desk.outbox.add(desk.job("b", begun=False), chunk(0, 0, 7))
        await eventually(lambda: desk.calls == ["a+b"])
        assert desk.tokens["a"] == [[0, 1, 2]]


async def test_an_answer_in_one_piece_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(monkeypatch) as desk:
        desk.outbox.end(desk.job("whole", streams=False))
        await eventually(lambda: desk.calls == ["end of whole"])


async def test_the_end_of_a_stream_leaves_with_its_last_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which its consumer has not read yet: their time is that of all chunks."""
    async with writing(monkeypatch) as desk:
        ending = desk.job("a")
        desk.outbox.add(ending, chunk(0, 0, 1))
        desk.outbox.end(ending)
        for _ in range(10):
            await asyncio.sleep(0)
        assert desk.calls == []

        desk.outbox.add(desk.job("b", begun=False), chunk(0, 0, 7))
        await eventually(lambda: desk.calls == ["a+b", "end of a"])


async def test_jobs_that_begin_one_upon_the_other_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a replica that takes many short jobs would write for each of them."""
    async with writing(monkeypatch, shortest_s=0.5) as desk:
        for name in "abc":
            desk.outbox.add(desk.job(name, begun=False), chunk(0, 0, 7))
            await asyncio.sleep(0.001)
        await eventually(lambda: desk.calls == ["a+b+c"])
