"""Streams from replicas that are actors of the real Serve application, and that are killed in the middle of a word."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress

import pytest

from headrace import AsyncClient, CancelOutcome, Job, Status
from headrace_cluster.local import LocalService
from support.actors import actors_of
from support.decoders import words_of
from support.waiting import eventually

pytestmark = pytest.mark.ray

MODEL = "words"
ROUNDS = 3


def job(prompt: str, words: int) -> Job:
    return Job(model=MODEL, input=prompt, params={"max_tokens": words})


async def heard(client: AsyncClient, some: Job) -> str:
    """All that a stream says; a gap or a repeat raises."""
    async with client.stream(some, timeout_s=60) as stream:
        text = "".join([piece async for piece in stream])
    assert stream.result is not None
    assert stream.result.text == text
    return text


async def test_many_streams_at_once(client: AsyncClient) -> None:
    texts = await asyncio.gather(*(heard(client, job(f"w{n}", 5 + n % 20)) for n in range(60)))

    assert texts == [words_of(f"w{n}", 5 + n % 20) for n in range(60)]


async def test_a_job_is_cancelled_within_a_step(client: AsyncClient) -> None:
    """Its place is free at once, and what it had said so far is in its result."""
    endless = {"max_tokens": 1_000_000, "stream": True}
    receipt = await client.submit(Job(model=MODEL, input="endless", params=endless))
    stream = client.stream(receipt)
    first = await anext(aiter(stream))
    assert await stream.cancel() is CancelOutcome.REQUESTED
    result = await client.result(receipt, timeout_s=5)
    await stream.aclose()

    assert result.status is Status.CANCELLED
    assert result.text is not None
    assert result.text.startswith(first)


@pytest.mark.slow
async def test_streams_go_on_when_replicas_are_killed_in_the_middle(client: AsyncClient, service: LocalService) -> None:
    """kill -9 of their processes, at random moments, round after round: every stream is whole."""
    chance, before = random.Random(3), await client.audit(MODEL)
    for round_ in range(ROUNDS):
        await eventually(lambda: len(actors_of(f"{MODEL}@cpu")) == 2, within_s=60)
        lengths = [chance.randrange(50, 250) for _ in range(12)]
        listening = [
            asyncio.create_task(heard(client, job(f"r{round_}w{n}", words))) for n, words in enumerate(lengths)
        ]
        await asyncio.sleep(chance.uniform(0.05, 1.0))
        with suppress(ProcessLookupError):
            os.kill(chance.choice(actors_of(f"{MODEL}@cpu")), signal.SIGKILL)
        assert await asyncio.gather(*listening) == [words_of(f"r{round_}w{n}", w) for n, w in enumerate(lengths)]

    audit = await client.audit(MODEL)
    assert audit.submitted - before.submitted == audit.ok - before.ok == 12 * ROUNDS
    assert (audit.live, audit.lost, audit.doubled) == (0, 0, 0)
    assert (await asyncio.to_thread(service.counts))[MODEL]["replica_deaths"] > 0
