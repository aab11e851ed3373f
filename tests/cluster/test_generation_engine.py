"""The real engine behind a router, a tiny model in it: who is interrupted says what he would have said."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace import AsyncClient, Job
from headrace_cluster.scheduling.routing import RoutingPolicy
from headrace_workers.engines.base import Prepared
from headrace_workers.engines.decoder import DecoderEngine
from support.mortal import MortalReplica
from support.routing import MODEL, assert_all_accounted_for
from support.service import PlainService
from support.tiny_decoder import tiny_decoder
from support.waiting import eventually

WORDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("tiny"))


def params(number: int) -> dict[str, Any]:
    """Greedy, and drawn from a seed, in turn."""
    drawn = {"temperature": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
    return drawn | {"max_tokens": WORDS, "ignore_eos": True, "n": 1 + number % 3 // 2}


def alone(engine: DecoderEngine, number: int) -> list[str]:
    """What a job says that nothing happens to."""
    [item] = engine.prepare([(f"mill {number}", params(number))])
    assert isinstance(item, Prepared)
    [output] = engine.run([item])
    return [choice["text"] for choice in output["choices"]]


async def test_interrupted_streams_say_what_they_would_have_said(redis_url: str, folder: Path) -> None:
    """Their replica dies in the middle; another, whose batches and steps are others, goes on behind what was heard."""
    dying = MortalReplica(MODEL, redis_url, DecoderEngine(folder, slots=8, prefill_rows=48))
    successor = MortalReplica(MODEL, redis_url, DecoderEngine(folder, slots=3, prefill_rows=40))
    undisturbed = DecoderEngine(folder, slots=2)
    right = [alone(undisturbed, number) for number in range(6)]
    service = PlainService(redis_url, MODEL, policy=RoutingPolicy(block_ms=50, jobs_per_replica=8))
    service.pool.replicas = {"dying": dying}  # type: ignore[dict-item]
    chunks = 0

    async def heard(client: AsyncClient, number: int) -> list[str]:
        nonlocal chunks
        job = Job(model=MODEL, input=f"mill {number}", params=params(number))
        texts = [""] * len(right[number])
        async with client.stream(job, timeout_s=20) as stream:
            async for chunk in stream.chunks():
                texts[chunk.index] += chunk.text
                chunks += 1
        return texts

    async with service, AsyncClient(redis_url) as client:
        listening = [asyncio.create_task(heard(client, number)) for number in range(6)]
        await eventually(lambda: chunks > 3)
        service.pool.change({"successor": successor})  # type: ignore[dict-item]
        await dying.kill()

        assert await asyncio.gather(*listening) == right
        await assert_all_accounted_for(client, 6)
    for replica in (dying, successor):
        await replica.close()
