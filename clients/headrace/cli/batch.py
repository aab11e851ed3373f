"""`headrace batch`: run a whole file, and go on where it stopped after whatever stopped it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from headrace.aio import AsyncClient
from headrace.cli.batch_input import BatchInput, JobOptions
from headrace.cli.batch_output import BatchOutput
from headrace.cli.batch_run import BatchRun, RunOptions
from headrace.cli.batch_state import BatchIdentity
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
from headrace.cli.output import CommandError, Exit, InterruptError, Output
from headrace.cli.preflight import require_model
from headrace.cli.rendering import TensorFormat
from headrace.cli.running import run_to_end
from headrace.messages.job import Job

__all__ = ["batch"]

_Input = Annotated[Path, typer.Argument(metavar="IN.jsonl", help="One job a line: custom_id, input, params.")]
_Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="One answer a line, as they come.")]
_Errors = Annotated[
    Path | None,
    typer.Option(
        "--errors", metavar="ERR.jsonl", help="Failed lines; by default OUT.jsonl.errors.jsonl.", show_default=False
    ),
]
_InFlight = Annotated[int, typer.Option("--in-flight", min=1, max=100_000, help="Jobs handed over and not answered.")]
_Tensors = Annotated[TensorFormat, typer.Option("--tensor-format", help="How tensors are written.")]
_Timeout = Annotated[
    float, typer.Option("--timeout-s", min=0.1, callback=finite, help="Give up after so long without an answer.")
]
_Restart = Annotated[bool, typer.Option("--restart", help="Discard what an earlier run left, outputs included.")]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the command was asked to do."""

    redis_url: str | None
    identity: BatchIdentity
    source: BatchInput
    files: BatchOutput
    priority: str
    tenant: str
    attempts: int
    options: RunOptions
    restart: bool


def batch(
    model: Model,
    input_path: _Input,
    *,
    output_path: _Output,
    errors_path: _Errors = None,
    in_flight: _InFlight = 1024,
    param: Params = None,
    priority: Priority = "normal",
    tenant: Tenant = "default",
    attempts: Attempts = 1,
    tensors: _Tensors = TensorFormat.LIST,
    timeout_s: _Timeout = 300.0,
    restart: _Restart = False,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """Run MODEL on every line of IN.jsonl.

    Each line is {"custom_id": "...", "input": ..., "params": {...}}; params may be left out.

    After an interruption, repeat the very same command: it goes on where it stopped.
    """
    params = parse_params(param)
    Job(model=model, input="", params=params, priority=priority, tenant=tenant)  # refused here, or never
    errors = errors_path or output_path.with_name(output_path.name + ".errors.jsonl")
    state = output_path.with_name(output_path.name + ".state")
    source = BatchInput(input_path)
    _refuse_bad_paths(input_path, output_path, errors, state)
    source.examine()
    identity = BatchIdentity(
        model=model, params=params, tensors=tensors, input_bytes=source.size_bytes, input_sha256=source.sha256
    )
    files, options = BatchOutput(output_path, errors, state), RunOptions(in_flight=in_flight, timeout_s=timeout_s)
    return _run(
        _Plan(redis_url, identity, source, files, priority, tenant, attempts, options, restart), Output(as_json=as_json)
    )


def _refuse_bad_paths(*paths: Path) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        raise CommandError("input, output, error and state file must be four", code="usage", hint="rename one")
    for path in paths[1:]:
        if not path.parent.is_dir():
            raise CommandError(f"{path.parent} is no directory", code="usage", hint=f"mkdir -p {path.parent}")
        if path.exists() and not path.is_file():
            raise CommandError(f"{path} is no regular file", code="usage", hint="name a file; it is read back too")


def _run(plan: _Plan, output: Output) -> Exit:
    started_s = time.monotonic()
    try:
        summary = run_to_end(_run_batch(plan, output))
    except KeyboardInterrupt:
        finished = plan.files.done + plan.files.failed
        raise InterruptError(
            f"interrupted; {finished:,} lines are finished", hint="repeat the command to go on"
        ) from None
    finally:
        plan.files.close()
    _say_summary(summary, time.monotonic() - started_s, output)
    return Exit.FAILED if summary["failed"] else Exit.DONE


async def _run_batch(plan: _Plan, output: Output) -> dict[str, Any]:
    source, files = plan.source, plan.files
    async with AsyncClient(plan.redis_url) as client:
        await require_model(client, plan.identity.model, one_shard=True)
        files.open(plan.identity, restart=plan.restart)
        skipped = len(files.finished)
        with _progress(source, files, shown=not output.as_json and sys.stderr.isatty()) as progress:
            run = BatchRun(
                client,
                source,
                files,
                job_options=JobOptions(
                    plan.identity.model,
                    plan.identity.params,
                    plan.priority,
                    plan.tenant,
                    files.state.inbox,
                    retry_policy(plan.attempts),
                ),
                tensors=plan.identity.tensors,
                options=plan.options,
                progress=progress,
            )
            await run.run()
    return {"total": run.lines_seen, "done": files.done, "failed": files.failed, "skipped": skipped} | {
        "output": str(files.output),
        "errors": str(files.errors) if files.failed else None,
    }


class _Rate(ProgressColumn):
    """Jobs a second."""

    def render(self, task: Task) -> Text:
        """The speed of the last while, or a dash before there is one."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-", style="progress.data.speed")


@contextmanager
def _progress(source: BatchInput, files: BatchOutput, *, shown: bool) -> Iterator[Any]:
    """A bar on stderr; yields what moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as display:
        task = display.add_task("", total=source.lines_at_most, completed=len(files.finished))

        def move() -> None:
            failed = f"{files.failed:,} failed" if files.failed else ""
            display.update(task, completed=len(files.finished), description=failed)

        yield move


def _say_summary(summary: dict[str, Any], seconds: float, output: Output) -> None:
    ran = summary["done"] + summary["failed"] - summary["skipped"]
    jobs_per_s = ran / seconds if seconds else 0.0
    output.emit(summary | {"seconds": round(seconds, 3), "jobs_per_s": round(jobs_per_s, 1)})
    skipped = f" ({summary['skipped']:,} by an earlier run)" if summary["skipped"] else ""
    text = f"{summary['done']:,} done, {summary['failed']:,} failed{skipped} of {summary['total']:,} lines"
    output.show(f"{text}, {seconds:.1f} s, {jobs_per_s:,.0f} jobs/s", f"output  {summary['output']}")
    if summary["errors"]:
        output.show(f"errors  {summary['errors']}")
