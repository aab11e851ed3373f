"""Logs: one JSON object a line, with what it is about; never what is in a job."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from headrace import AsyncClient, Job
from headrace.telemetry.structured_logs import about, configure_logs, raised_at
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.engines.echo import EchoEngine
from support.decoders import FakeDecoder
from support.routing import MODEL, policy
from support.service import PlainService

SECRET = "the-patient-is-called-Miller"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where logs go; the logger is as before after the test."""
    logger = logging.getLogger("headrace")
    before = logger.handlers[:], logger.level, logger.propagate
    yield io.StringIO()
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object(stream: io.StringIO) -> None:
    """With when, how bad, who, what, and what about."""
    configure_logs("json", "info", stream=stream)
    logging.getLogger("headrace.router").warning(
        "%d jobs are late", 3, extra=about(model="m", job_id="j", traceparent=TRACE, batch_jobs=3, replica="cpu/1")
    )
    [line] = _lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "headrace.router",
        "message": "3 jobs are late",
        "model": "m",
        "job_id": "j",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "batch_jobs": 3,
        "replica": "cpu/1",
    }


def test_text_is_for_people(stream: io.StringIO) -> None:
    """And the level is the least that is written; to configure twice is to configure once."""
    for _ in range(2):
        configure_logs("text", "warning", stream=stream)
    log = logging.getLogger("headrace.replica")
    log.info("nothing")
    log.warning("something")
    [line] = stream.getvalue().splitlines()
    assert line.endswith("WARNING headrace.replica: something")


def test_an_error_of_our_own_has_its_traceback_in_its_line(stream: io.StringIO) -> None:
    """Line breaks and all."""
    configure_logs("json", "info", stream=stream)
    try:
        dict[str, str]()["missing"]
    except KeyError:
        logging.getLogger("headrace.router").exception("a fault")
    [line] = _lines(stream)
    assert "KeyError: 'missing'" in line["exception"]


def test_where_something_was_raised_without_what_it_said() -> None:
    """The message may quote a payload."""
    try:
        int(SECRET)
    except ValueError as error:
        place = raised_at(error)
    assert place.startswith("ValueError at test_structured_logs.py:")
    assert SECRET not in place
    assert raised_at(ValueError(SECRET)) == "ValueError"


class _Quoting(EchoEngine):
    """Raises errors that quote what it was given, as int() does."""

    def __init__(self, *, prepares: bool) -> None:
        super().__init__()
        self._prepares = prepares

    def prepare(self, requests: Any) -> list[Prepared | ItemError]:
        if not self._prepares:
            raise ValueError(f"invalid literal: {requests}")
        return super().prepare(requests)

    def run(self, items: Any) -> list[Any]:
        raise ValueError(f"invalid literal: {[item.data for item in items]}")


class _QuotingDecoder(FakeDecoder):
    def start(self, item: Prepared, **named: Any) -> Any:
        raise ValueError(f"invalid literal: {item.data}")


@pytest.mark.parametrize(
    ("engine", "jobs_per_replica"),
    [(_Quoting(prepares=False), 0), (_Quoting(prepares=True), 0), (_QuotingDecoder(slots=4), 4)],
)
async def test_payloads_are_never_logged(
    redis_url: str, stream: io.StringIO, engine: Any, jobs_per_replica: int
) -> None:
    """Not even where an engine quotes them in what it raises: the job's own answer says that, to its producer."""
    configure_logs("json", "debug", stream=stream)
    chosen = policy(jobs_per_replica=jobs_per_replica)
    async with PlainService(redis_url, MODEL, engine, policy=chosen), AsyncClient(redis_url) as client:
        jobs = [Job(model=MODEL, input=SECRET, id=f"bad-{n}", traceparent=TRACE) for n in range(3)]
        results = [result async for result in client.map(jobs)]

    assert all(SECRET in str(result.failure) for result in results)
    assert SECRET not in stream.getvalue()
    assert "ValueError at " in stream.getvalue()


async def test_a_job_that_failed_is_named(redis_url: str, stream: io.StringIO) -> None:
    """With its trace, so that its log lines are found from there."""
    configure_logs("json", "info", stream=stream)
    async with PlainService(redis_url, MODEL, _Quoting(prepares=True)), AsyncClient(redis_url) as client:
        await client.run(Job(model=MODEL, input=1, id="bad", traceparent=TRACE), timeout_s=10)
    [line] = [line for line in _lines(stream) if line["level"] == "error"]
    assert (line["model"], line["job_id"], line["trace_id"]) == (MODEL, "bad", TRACE.split("-")[1])
