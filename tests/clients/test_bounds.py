"""What a producer in any language may send: SUBMIT holds it to bounds before it touches anything."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import combinations
from typing import Any

import pytest
from redis.exceptions import ResponseError

from headrace import AsyncClient, Job
from headrace.codec import MAX_PAYLOAD_BYTES, pack
from headrace.ids import new_inbox
from headrace.keys import keys_of
from headrace.scripts import MAX_JOBS, SUBMIT
from headrace.server.connection import execute
from support.by_hand import HandService
from support.service import PlainService

MODEL = "by-hand"
HEAD = {"version": "1", "priority": "1", "token": "c0ffee01", "inbox": "box", "tenant": "t", "retry": "-"}
JOB = {"id": "job-1", "deadline": "0", "trace": "-", "payload": pack({"input": "x"})}


@pytest.fixture
async def bounded(redis_url: str) -> AsyncIterator[HandService]:
    async with HandService(redis_url, MODEL) as service:
        yield service


async def submit(service: HandService, *jobs: dict[str, Any], model: str = MODEL, **head: str) -> Any:
    words = [*(HEAD | head).values()]
    for job in jobs or ({},):
        words += (JOB | job).values()
    await service.redis.script_load(SUBMIT.text)
    return await execute(service.redis, "EVALSHA", SUBMIT.sha, 1, keys_of(model).prefix, *words)


@pytest.mark.parametrize(
    ("head", "job"),
    [
        ({"version": "1" * 5}, {}),
        ({"version": "-1"}, {}),
        ({"version": ""}, {}),
        ({"priority": "3"}, {}),
        ({"priority": "00"}, {}),
        ({"token": "a b"}, {}),
        ({"inbox": "x" * 65}, {}),
        ({"inbox": ""}, {}),
        ({"inbox": "a}b"}, {}),
        ({"tenant": "a\nb"}, {}),
        ({"retry": "1,2,3,x y"}, {}),
        ({"retry": "1" * 257}, {}),
        ({}, {"id": "a b"}),
        ({}, {"id": "x" * 65}),
        ({}, {"id": ""}),
        ({}, {"id": "\x00"}),
        ({}, {"deadline": "-1"}),
        ({}, {"deadline": "1e3"}),
        ({}, {"deadline": "9" * 13}),
        ({}, {"trace": "x"}),
        ({}, {"trace": "a" * 65}),
        ({}, {"payload": b"x" * (MAX_PAYLOAD_BYTES + 1)}),
    ],
)
async def test_what_is_out_of_bounds(bounded: HandService, head: dict[str, str], job: dict[str, Any]) -> None:
    """The whole call is refused, and nothing is there afterwards, whichever of its jobs it was."""
    with pytest.raises(ResponseError, match="SUBMIT"):
        await submit(bounded, {"id": "first"}, job, **head)
    async with AsyncClient(bounded_url(bounded)) as client:
        assert (await client.audit(MODEL)).submitted == 0
    assert await bounded.take() == []


def bounded_url(service: HandService) -> str:
    return f"unix://{service.redis.connection_pool.connection_kwargs['path']}"


async def test_what_is_just_within_bounds(bounded: HandService) -> None:
    """The largest payload, the longest names, and as many jobs as a call may have."""
    payload = pack({"input": "x" * (MAX_PAYLOAD_BYTES - 12)})
    assert len(payload) == MAX_PAYLOAD_BYTES
    longest = {"id": "x" * 64, "deadline": "9" * 12, "trace": "a" * 64, "payload": payload}
    assert await submit(bounded, longest, version="9999", inbox="b" * 64, tenant="t" * 64, retry="1" * 256) == [0]
    many = [{"id": f"job-{n}"} for n in range(MAX_JOBS + 1)]
    assert await submit(bounded, *many[:MAX_JOBS]) == [0] * MAX_JOBS
    with pytest.raises(ResponseError, match=f"SUBMIT takes at most {MAX_JOBS} jobs"):
        await submit(bounded, *many)


@pytest.mark.parametrize("retry", ["x", "1", "a,b,c,d", "9,9,9,9,9", "0,0,0,none", "5,-1,0,x", "9" * 200 + ",1,1,x"])
async def test_a_retry_policy_that_is_none(redis_url: str, retry: str) -> None:
    """It passes SUBMIT, which knows no policies; the job has its one answer all the same."""
    async with (
        PlainService(redis_url, "echo"),
        HandService(redis_url, MODEL) as sender,
        AsyncClient(redis_url) as client,
    ):
        assert await submit(sender, {"id": "odd"}, model="echo", retry=retry) == [0]
        result = await client.result("odd", model="echo", timeout_s=10)
        assert result.status in ("ok", "error")


async def test_a_payload_that_is_none(redis_url: str) -> None:
    """Only a replica looks inside, and answers that job alone."""
    async with (
        PlainService(redis_url, "echo"),
        HandService(redis_url, MODEL) as sender,
        AsyncClient(redis_url) as client,
    ):
        jobs: list[dict[str, Any]] = [
            {"id": "good"},
            {"id": "bad", "payload": b"\xc1"},
            {"id": "deep", "payload": b"\x91" * 100_000},
        ]
        assert await submit(sender, *jobs, model="echo") == [0, 0, 0]
        for job_id, status in (("good", "ok"), ("bad", "error"), ("deep", "error")):
            assert (await client.result(job_id, model="echo", timeout_s=10)).status == status


# -- names that nobody guesses ---------------------------------------------------------------------------------------


def test_inboxes_are_128_bits_from_the_system() -> None:
    """Not from a generator whose state can be learned: the same seed does not give the same names."""
    random.seed(1)
    first = [new_inbox() for _ in range(500)]
    random.seed(1)
    again = [new_inbox() for _ in range(500)]
    assert len({*first, *again}) == 1000
    numbers = [int(name, 16) for name in (*first, *again)]
    assert {len(name) for name in (*first, *again)} == {32}
    for bit in range(128):  # each is set in about half of them: 1,000 throws, eight standard deviations
        assert 374 < sum(number >> bit & 1 for number in numbers) < 626
    distances = [(one ^ other).bit_count() for one, other in combinations(numbers[:60], 2)]
    assert min(distances) > 20


async def test_each_client_has_an_inbox_of_its_own(bounded: HandService) -> None:
    """And a job that names none goes there."""
    url = bounded_url(bounded)
    async with AsyncClient(url) as one, AsyncClient(url) as other:
        assert one.inbox != other.inbox
        assert (await one.submit(Job(model=MODEL, input="x"))).inbox == one.inbox
