"""Errors: a job that fails is answered like any other, and its error is of a class that says whose fault it was."""

import pytest

from headrace import (
    AsyncClient,
    EngineFailedError,
    FailureCode,
    InvalidInputError,
    InvalidJobError,
    Job,
    JobFailedError,
    Status,
    UnknownModelError,
)
from support.bad_days import PickyEngine
from support.service import PlainService


def test_a_job_that_cannot_be_right_is_refused_before_it_is_sent() -> None:
    """The error names the field, and never shows what was in it."""
    with pytest.raises(InvalidJobError, match="deadline_s: Input should be greater than 0"):
        Job(model="echo", input="x", deadline_s=-1)


async def test_a_model_that_nobody_serves(echo_service: PlainService, redis_url: str) -> None:
    """A misspelt name is an error at once, not a job that waits for ever."""
    async with AsyncClient(redis_url) as client:
        with pytest.raises(UnknownModelError, match="'ecko'"):
            await client.submit(Job(model="ecko", input="x"))


async def test_unwrap_gives_the_output_or_raises(redis_url: str) -> None:
    """An input that the engine refuses is the producer's to fix."""
    async with PlainService(redis_url, "picky", PickyEngine()), AsyncClient(redis_url) as client:
        result = await client.run(Job(model="picky", input=""), timeout_s=5)

    assert result.status is Status.ERROR
    assert result.failure is not None
    assert result.failure.code == FailureCode.INVALID_INPUT
    with pytest.raises(InvalidInputError, match="empty"):
        result.unwrap()


async def test_an_engine_that_fails_on_one_job_fails_that_job_only(redis_url: str) -> None:
    """The other jobs of the same batch are answered as if it had not been there."""
    jobs = [Job(model="picky", input=value) for value in ("good", "poison", "also good")]

    async with PlainService(redis_url, "picky", PickyEngine()), AsyncClient(redis_url) as client:
        good, poisoned, also_good = [result async for result in client.map(jobs)]

    assert (good.unwrap(), also_good.unwrap()) == ("good", "also good")
    with pytest.raises(EngineFailedError):
        poisoned.unwrap()


async def test_one_class_catches_every_failed_job(redis_url: str) -> None:
    """The error carries what the service said: a code, a message, a hint, and whether trying again may help."""
    async with PlainService(redis_url, "picky", PickyEngine()), AsyncClient(redis_url) as client:
        with pytest.raises(JobFailedError) as caught:
            (await client.run(Job(model="picky", input="poison", id="culprit"), timeout_s=5)).unwrap()

    assert caught.value.job_id == "culprit"
    assert caught.value.failure.retryable
