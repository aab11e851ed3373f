"""`headrace dlq` and `headrace cancel`: what was given up, and what is called off."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from headrace import AsyncClient, Job, Status
from headrace.cli.output import Exit
from headrace.errors import FailureCode
from headrace.keys import keys_of
from headrace.models.registry import Limits
from support.by_hand import HandService
from support.command_line import Run

MODEL = "by-hand"


@pytest.fixture
async def by_hand(redis_url: str) -> AsyncIterator[HandService]:
    async with HandService(redis_url, limits=Limits(dead_letter_capacity=1000)) as service:
        yield service


async def kill(service: HandService, url: str, *jobs: Job, code: FailureCode = FailureCode.POISON) -> None:
    """Submit jobs and have them given up."""
    async with AsyncClient(url) as client:
        await client.submit_many([job.model_copy(update={"inbox": "box"}) for job in jobs])
    await service.fail(*await service.take(), status=Status.DEAD, code=code)


def job(job_id: str, **fields: object) -> Job:
    return Job(model=MODEL, input=f"input of {job_id}", id=job_id, **fields)


async def test_letters_are_listed(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    await kill(by_hand, redis_url, job("a", tenant="t1", traceparent="00-abc-def-01"), job("b", priority="low"))

    ran = await headrace("dlq", "list", MODEL, "--json")

    first, second = ran.objects
    assert ran.status == 0
    assert (first["job_id"], first["tenant"], first["code"], first["attempts"]) == ("a", "t1", "poison", 1)
    assert first["traceparent"] == "00-abc-def-01"
    assert (second["job_id"], second["priority"], second["inbox"]) == ("b", "low", "box")
    for_people = await headrace("dlq", "list", MODEL)
    assert "poison: by hand" in for_people.out


async def test_none(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace("dlq", "list", MODEL)
    assert (ran.status, ran.out.strip()) == (0, "no dead letters of by-hand")


async def test_one_is_shown_with_its_input(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    await kill(by_hand, redis_url, job("a", params={"k": 1}))
    [letter] = (await headrace("dlq", "list", MODEL, "--json")).objects

    shown = (await headrace("dlq", "show", MODEL, letter["letter_id"], "--json")).last

    assert (shown["input"], shown["params"]) == ("input of a", {"k": 1})
    assert "input of a" in (await headrace("dlq", "show", MODEL, letter["letter_id"])).out
    missing = await headrace("dlq", "show", MODEL, "1-1", "--json")
    assert (missing.status, missing.last["error"]["code"]) == (Exit.FAILED, "no_letter")


async def test_a_replayed_job_runs_as_it_was(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    """It is a submission more; the answer stands behind the entry that called it dead."""
    await kill(by_hand, redis_url, job("a", deadline_s=60, tenant="t1", priority="high"))

    ran = await headrace("dlq", "replay", MODEL, "--job", "a", "--json")

    assert (ran.status, ran.last) == (0, {"replayed": 1, "gone": 0, "live": 0})
    [entry] = await by_hand.take()
    assert (entry.priority, entry.envelope.tenant, entry.envelope.attempt, entry.envelope.deadline_ms) == (
        0,
        "t1",
        1,
        0,
    )
    await by_hand.answer(entry, output="at last")
    async with AsyncClient(redis_url) as client:
        statuses = [r.status async for r in client.results("box", model=MODEL, after="0", idle_s=0)]
        audit = await client.audit(MODEL)
        assert (await client.result("a", model=MODEL)).output == "at last"
    assert statuses == [Status.DEAD, Status.OK]
    assert (audit.submitted, audit.ok, audit.dead, audit.live, audit.dead_letters) == (2, 1, 1, 0, 0)


async def test_filters(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    await kill(by_hand, redis_url, job("a", tenant="t1"), job("b", tenant="t2"))
    await kill(by_hand, redis_url, job("c", tenant="t1"), code=FailureCode.ENGINE_FAILED)

    async def jobs(*options: str) -> list[str]:
        return [letter["job_id"] for letter in (await headrace("dlq", "list", MODEL, *options, "--json")).objects]

    assert await jobs() == ["a", "b", "c"]
    assert await jobs("--tenant", "t1") == ["a", "c"]
    assert await jobs("--code", "poison", "--tenant", "t1") == ["a"]
    assert await jobs("--job", "b", "--job", "c") == ["b", "c"]
    assert await jobs("--older-than-s", "3600") == []
    assert await jobs("--limit", "2") == ["a", "b"]


async def test_a_dry_run_changes_nothing(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    await kill(by_hand, redis_url, job("a"), job("b"))
    for command in ("replay", "drop"):
        ran = await headrace("dlq", command, MODEL, "--all", "--dry-run", "--json")
        assert ran.status == 0
        assert len(ran.last["letters"]) == 2
    assert len((await headrace("dlq", "list", MODEL, "--json")).objects) == 2


async def test_dropping(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    await kill(by_hand, redis_url, job("a"), job("b"))
    assert (await headrace("dlq", "drop", MODEL, "--job", "a", "--json")).last == {"dropped": 1, "gone": 0}
    [left] = (await headrace("dlq", "list", MODEL, "--json")).objects
    assert left["job_id"] == "b"
    assert (await headrace("dlq", "drop", MODEL, left["letter_id"], "--json")).last == {"dropped": 1, "gone": 0}


async def test_all_must_be_said(by_hand: HandService, headrace: Run) -> None:
    ran = await headrace("dlq", "drop", MODEL, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (Exit.USAGE, "usage")
    assert "--all" in ran.err


async def test_a_letter_of_a_live_job_stays(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    """The producer had submitted it again under its id, once the record was gone."""
    await kill(by_hand, redis_url, job("a"))
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys_of(MODEL).record("a"))
    async with AsyncClient(redis_url) as again:
        await again.submit(job("a", inbox="box"))

    ran = await headrace("dlq", "replay", MODEL, "--all", "--json")

    assert (ran.status, ran.last) == (Exit.FAILED, {"replayed": 0, "gone": 0, "live": 1})


async def test_letters_are_bounded(redis_url: str, headrace: Run) -> None:
    async with HandService(redis_url, limits=Limits(dead_letter_capacity=100)) as service:
        for start in range(0, 600, 100):
            await kill(service, redis_url, *[job(str(n)) for n in range(start, start + 100)])
        async with AsyncClient(redis_url) as client:
            audit = await client.audit(MODEL)
    assert audit.dead == 600
    assert audit.dead_letters <= 200, "the trim is approximate"


async def test_jobs_are_called_off(by_hand: HandService, headrace: Run, redis_url: str) -> None:
    async with AsyncClient(redis_url) as client:
        await client.submit_many([job("a", inbox="box"), job("b", inbox="box")])
        await by_hand.take(1)
    ran = await headrace("cancel", MODEL, "a", "b", "c", "--json")

    assert ran.status == Exit.FAILED, "one is not known"
    assert [line["outcome"] for line in ran.objects] == ["requested", "cancelled", "unknown"]
    assert "it runs or is about to" in (await headrace("cancel", MODEL, "a")).out
