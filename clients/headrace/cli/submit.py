"""`headrace submit`: hand a few texts over, and see what comes back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from headrace.aio import AsyncClient
from headrace.cli.options import (
    AsJson,
    Attempts,
    Model,
    Params,
    Priority,
    RedisUrl,
    Tenant,
    finite,
    parse_params,
    retry_policy,
)
from headrace.cli.output import CommandError, Exit, Output, describe, report
from headrace.cli.preflight import require_model
from headrace.cli.rendering import render_result, result_fields
from headrace.cli.running import run_to_end
from headrace.cli.streaming import stream_jobs
from headrace.errors import ResultGoneError, ResultTimeoutError, WireError
from headrace.messages.job import Job, Receipt
from headrace.messages.result import Result

__all__ = ["submit"]

_MOST_TEXTS: Final = 10_000

_Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="What to run the model on; a lone `-` reads lines from standard input."),
]
_JobId = Annotated[str | None, typer.Option("--id", metavar="ID", help="The job's id; the same id never runs twice.")]
_Deadline = Annotated[float | None, typer.Option("--deadline-s", help="Seconds after which an answer is of no use.")]
_Inbox = Annotated[str | None, typer.Option("--inbox", metavar="NAME", help="Also leave the answers in this inbox.")]
_Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answers and print them.")]
_Stream = Annotated[bool, typer.Option("--stream", help="Show texts as they are generated; Ctrl-C cancels the jobs.")]
_Timeout = Annotated[float, typer.Option("--timeout-s", min=0.0, callback=finite, help="How long to wait, in all.")]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Whether answers are waited for, and how long."""

    wanted: bool
    streamed: bool
    timeout_s: float


def submit(
    model: Model,
    texts: _Texts = None,
    *,
    job_id: _JobId = None,
    priority: Priority = "normal",
    deadline_s: _Deadline = None,
    tenant: Tenant = "default",
    attempts: Attempts = 1,
    inbox: _Inbox = None,
    param: Params = None,
    wait: _Wait = True,
    stream: _Stream = False,
    timeout_s: _Timeout = 60.0,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """Submit texts to MODEL and print the answers.

    With --json, one object for each text, in order; with --stream also one for each chunk, as they come.
    """
    if stream and not wait:
        raise typer.BadParameter("what nobody waits for cannot be shown", param_hint="--stream")
    inputs = _inputs(texts or [])
    options: dict[str, Any] = {
        "priority": priority,
        "deadline_s": deadline_s,
        "tenant": tenant,
        "params": parse_params(param),
    }
    options["retry"] = retry_policy(attempts)
    if job_id is not None:
        if len(inputs) > 1:
            raise typer.BadParameter("an id names one job, and there are several texts", param_hint="--id")
        options["id"] = job_id
    jobs = [Job(model=model, input=text, inbox=inbox, **options) for text in inputs]
    return run_to_end(_submit(redis_url, jobs, _Waiting(wait, stream, timeout_s), output=Output(as_json=as_json)))


def _inputs(texts: Sequence[str]) -> list[str]:
    inputs = _lines_of_stdin() if list(texts) == ["-"] else list(texts)
    if not inputs:
        raise CommandError("there is no text to submit", code="no_input", hint="name one, or `-` to read lines")
    if len(inputs) > _MOST_TEXTS:
        raise CommandError(
            f"more than {_MOST_TEXTS:,} texts", code="too_many", hint="`headrace batch` takes files of any size"
        )
    return inputs


def _lines_of_stdin() -> list[str]:
    lines: list[str] = []
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise CommandError(
                f"line {number} of standard input is not UTF-8", code="not_utf8", hint="nothing was submitted"
            ) from None
        if text:
            lines.append(text)
        if len(lines) > _MOST_TEXTS:
            break
    return lines


async def _submit(redis_url: str | None, jobs: Sequence[Job], waiting: _Waiting, *, output: Output) -> Exit:
    async with AsyncClient(redis_url) as client:
        await require_model(client, jobs[0].model)
        if waiting.streamed:
            return await stream_jobs(client, jobs, timeout_s=waiting.timeout_s, output=output)
        until = asyncio.get_running_loop().time() + waiting.timeout_s
        receipts = await _hand_over(client, jobs, timeout_s=waiting.timeout_s)
        if not waiting.wanted:
            for receipt in receipts:
                _say_receipt(receipt, output)
            return Exit.DONE
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        return await _say_answers(client, receipts, timeout_s=left_s, output=output)


async def _say_answers(client: AsyncClient, receipts: Sequence[Receipt], *, timeout_s: float, output: Output) -> Exit:
    """Wait for all answers at once, and print them in order."""
    answers = [asyncio.create_task(client.result(receipt, timeout_s=timeout_s)) for receipt in receipts]
    try:
        return max(
            [await _say_answer(receipt, answer, output) for receipt, answer in zip(receipts, answers, strict=True)]
        )
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def _hand_over(client: AsyncClient, jobs: Sequence[Job], *, timeout_s: float) -> list[Receipt]:
    try:
        async with asyncio.timeout(timeout_s):
            return await client.submit_patiently(jobs)
    except TimeoutError:
        raise CommandError(
            f"the lane of {jobs[0].model} was full for {timeout_s:g} s; some jobs may have been accepted",
            code="queue_full",
            hint="repeat with the same --id, or later",
            status=Exit.TIMED_OUT,
        ) from None


def _say_receipt(receipt: Receipt, output: Output) -> None:
    output.emit(
        {"id": receipt.id, "model": receipt.model, "outcome": str(receipt.outcome), "inbox": receipt.inbox},
    )
    output.show(f"{receipt.id}  {receipt.outcome}  inbox {receipt.inbox}")


async def _say_answer(receipt: Receipt, answer: asyncio.Task[Result], output: Output) -> Exit:
    try:
        result = await answer
    except ResultTimeoutError:
        error = ResultTimeoutError(f"job {receipt.id} of {receipt.model} has no answer yet")
        return _say_failure(receipt, error, output)
    except (ResultGoneError, WireError) as error:
        return _say_failure(receipt, error, output)
    output.emit(result_fields(result))
    output.show(*render_result(result))
    return Exit.DONE if result.ok else Exit.FAILED


def _say_failure(receipt: Receipt, error: Exception, output: Output) -> Exit:
    problem = describe(error)
    fields: dict[str, Any] = {"code": problem.code, "message": problem.message, "hint": problem.hint}
    output.emit({"id": receipt.id, "model": receipt.model, "error": fields})
    report(error, as_json=False)
    return problem.status
