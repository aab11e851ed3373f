"""`headrace status`: which models are served, how much work they have, and where one job is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from headrace.aio import AsyncClient
from headrace.cli.options import AsJson, RedisUrl
from headrace.cli.output import Exit, Output
from headrace.cli.preflight import require_model
from headrace.cli.running import run_to_end
from headrace.ids import is_name
from headrace.messages.result import JobStatus
from headrace.models.overview import ModelOverview, read_overviews
from headrace.server.connection import commands

__all__ = ["status"]

_Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Only this model.")]
_JobId = Annotated[str | None, typer.Argument(metavar="JOB_ID", help="Only this job.")]


def status(model: _Model = None, job_id: _JobId = None, *, redis_url: RedisUrl = None, as_json: AsJson = False) -> int:
    """Show the models and their lanes, one model's, or where one job is.

    Waiting jobs are counted by priority: high/normal/low. Pending ones are in a router's or a replica's hands.

    Exit status 1 if the audit finds jobs lost or answered twice.
    """
    if job_id is not None and not is_name(job_id):
        raise typer.BadParameter(f"{job_id!r} cannot be a job's id", param_hint="JOB_ID")
    return run_to_end(_status(redis_url, model, job_id, output=Output(as_json=as_json)))


async def _status(redis_url: str | None, model: str | None, job_id: str | None, *, output: Output) -> Exit:
    async with AsyncClient(redis_url) as client:
        if model is None:
            await client.ping()
        else:
            await require_model(client, model)
        if model is not None and job_id is not None:
            return _say_job(await client.status(job_id, model=model), output)
        models = await client.models() if model is None else await client.shards(model)
        overviews = await _overviews(client.url, models)
    if model is None or len(models) > 1:
        output.emit({"models": [_fields(overview) for overview in overviews]})
    else:
        output.emit(_fields(overviews[0]))
    output.show(*_render(overviews))
    faults = sum(overview.audit.lost + overview.audit.doubled for overview in overviews)
    return Exit.FAILED if faults else Exit.DONE


async def _overviews(url: str, models: Sequence[str]) -> list[ModelOverview]:
    redis = commands(url)
    try:
        return await read_overviews(redis, models)
    finally:
        await redis.aclose()


def _fields(overview: ModelOverview) -> dict[str, Any]:
    audit = overview.audit
    return {
        "model": overview.model,
        "lanes": {
            lane.priority: {"waiting": lane.waiting, "pending": lane.delivered, "live": lane.live}
            for lane in overview.lanes
        },
        "waiting": overview.waiting,
        "pending": overview.delivered,
        **asdict(audit),
        "finished": audit.finished,
        "lost": audit.lost,
        "doubled": audit.doubled,
    }


def _render(overviews: Sequence[ModelOverview]) -> list[RenderableType]:
    if not overviews:
        return ["no service has registered a model in this Redis yet"]
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("waiting", "pending", "submitted", "ok", "error", "expired", "cancelled", "dead"):
        table.add_column(name, justify="right")
    for name in ("lost", "doubled"):
        table.add_column(name, justify="right", style="bold")
    for overview in overviews:
        audit = overview.audit
        counts = (overview.delivered, audit.submitted, audit.ok, audit.error, audit.expired, audit.cancelled)
        waiting = "/".join(f"{lane.waiting:,}" for lane in overview.lanes)
        rest = (*counts, audit.dead, audit.lost, audit.doubled)
        table.add_row(overview.model, waiting, *(f"{count:,}" for count in rest))
    return [table]


def _say_job(job: JobStatus, output: Output) -> Exit:
    output.emit(job.model_dump(mode="json"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in job.model_dump(mode="json").items():
        shown = _time(value) if name.endswith("_ms") and value is not None else value
        table.add_row(name.removesuffix("_ms"), "-" if shown is None else str(shown))
    output.show(table)
    return Exit.DONE


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
