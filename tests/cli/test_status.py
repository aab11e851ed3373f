"""`headrace status`: lanes, audit, and one job."""

from __future__ import annotations

import pytest
import redis

from headrace.cli.output import Exit
from headrace.keys import keys_of
from headrace.models.overview import read_overviews
from support.by_hand import HandService
from support.command_line import Run
from support.service import PlainService


async def test_no_models_yet(headrace: Run, redis_url: str) -> None:
    assert "no service has registered a model" in (await headrace("status")).out
    assert (await headrace("status", "--json")).last == {"models": []}


async def test_waiting_pending_and_ended_jobs_are_told_apart(headrace: Run, redis_url: str) -> None:
    async with HandService(redis_url) as service:
        for priority in ("high", "normal", "normal", "low"):
            await headrace("submit", "by-hand", "x", "--no-wait", "--priority", priority)
        entries = await service.take(1)
        await service.answer(entries[0])
        await service.fail(entries[1])

        status = (await headrace("status", "by-hand", "--json")).last
        assert status["lanes"] == {
            "high": {"waiting": 0, "pending": 0, "live": 0},
            "normal": {"waiting": 1, "pending": 0, "live": 1},
            "low": {"waiting": 0, "pending": 1, "live": 1},
        }
        counts = {name: status[name] for name in ("submitted", "waiting", "pending", "live", "ok", "error", "finished")}
        assert counts == {
            "submitted": 4, "waiting": 1, "pending": 1, "live": 2, "ok": 1, "error": 1, "finished": 2,
        }  # fmt: skip
        assert (await headrace("status")).out.splitlines()[-1].split()[:4] == ["by-hand", "0/1/0", "1", "4"]


async def test_many_models_in_one_round_trip(headrace: Run, redis_url: str) -> None:
    async with HandService(redis_url, "one"), HandService(redis_url, "another") as service:
        await headrace("submit", "another", "x", "--no-wait")
        overviews = await read_overviews(service.redis, ["one", "another"])
        assert [(overview.model, overview.audit.submitted) for overview in overviews] == [("one", 0), ("another", 1)]
        assert [model["model"] for model in (await headrace("status", "--json")).last["models"]] == ["another", "one"]


async def test_lost_jobs_are_exit_status_1(echo_service: PlainService, headrace: Run, redis_url: str) -> None:
    await headrace("submit", "echo", "x")
    with redis.Redis.from_url(redis_url) as client:
        client.hincrby(keys_of("echo").counters, "submitted", 2)
    ran = await headrace("status", "--json")
    assert (ran.status, ran.last["models"][0]["lost"]) == (Exit.FAILED, 2)


async def test_one_job(redis_url: str, headrace: Run) -> None:
    async with HandService(redis_url) as service:
        await headrace("submit", "by-hand", "x", "--no-wait", "--id", "my-job", "--inbox", "box")
        assert (await headrace("status", "by-hand", "my-job", "--json")).last["state"] == "waiting"
        entries = await service.take()
        running = (await headrace("status", "by-hand", "my-job", "--json")).last
        assert (running["state"], running["deliveries"], running["inbox"]) == ("running", 1, "box")
        await service.answer(*entries)
        assert (await headrace("status", "by-hand", "my-job", "--json")).last["state"] == "ok"
    assert "my-job" in (await headrace("status", "by-hand", "my-job")).out


@pytest.mark.parametrize(
    ("job_id", "status", "code"), [("never-seen", Exit.FAILED, "result_gone"), ("no id", Exit.USAGE, "usage")]
)
async def test_a_job_that_is_not_known(
    echo_service: PlainService, headrace: Run, job_id: str, status: Exit, code: str
) -> None:
    ran = await headrace("status", "echo", job_id, "--json")
    assert (ran.status, ran.last["error"]["code"]) == (status, code)
