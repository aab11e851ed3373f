"""`headrace cancel`: call jobs off."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.aio import AsyncClient
from headrace.cli.options import AsJson, Model, RedisUrl
from headrace.cli.output import Exit, Output
from headrace.cli.preflight import require_model
from headrace.cli.running import run_to_end
from headrace.ids import is_name
from headrace.messages.job import CancelOutcome

__all__ = ["cancel"]

_JobIds = Annotated[list[str], typer.Argument(metavar="JOB_ID...", help="The jobs.")]

_MEANING = {
    CancelOutcome.CANCELLED: "cancelled: it never runs",
    CancelOutcome.REQUESTED: "requested: it runs or is about to, and may still be answered",
    CancelOutcome.ENDED: "it had ended before",
    CancelOutcome.UNKNOWN: "no such job, or long ended",
}


def cancel(model: Model, job_ids: _JobIds, *, redis_url: RedisUrl = None, as_json: AsJson = False) -> int:
    """Stop jobs that have not ended.

    With --json, one object for each job. Exit status 1 if one of them is not known.
    """
    for job_id in job_ids:
        if not is_name(job_id):
            raise typer.BadParameter(f"{job_id!r} cannot be a job's id", param_hint="JOB_ID")
    return run_to_end(_cancel(redis_url, model, job_ids, Output(as_json=as_json)))


async def _cancel(redis_url: str | None, model: str, job_ids: list[str], output: Output) -> Exit:
    async with AsyncClient(redis_url) as client:
        await require_model(client, model)
        outcomes = await client.cancel_many(job_ids, model=model)
    for job_id, outcome in zip(job_ids, outcomes, strict=True):
        output.emit({"id": job_id, "outcome": str(outcome)})
        output.show(f"{job_id}: {_MEANING[outcome]}")
    return Exit.FAILED if CancelOutcome.UNKNOWN in outcomes else Exit.DONE
