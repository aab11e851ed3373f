"""`headrace apply`: have a running service be what a file says, without losing a job."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, finite
from headrace.cli.output import CommandError, Exit, Output
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.rollout.change import Plan

__all__ = ["apply"]

_File = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The configuration, in YAML: all of it, not the changes.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]
_Removed = Annotated[
    str,
    typer.Option(
        "--removed",
        metavar="refuse|drain|dead-letter",
        help="What becomes of the jobs of models that the file does not name any more: nothing is changed while there "
        "are any; they run first; or they end as dead letters, which can be replayed.",
    ),
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_App = Annotated[str, typer.Option("--app", metavar="NAME", help="The Serve application.")]
_RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        "-u",
        metavar="URL",
        help="The service's Redis as an `admin` (headrace acl), where its own user may not remove a model.",
        show_default=False,
    ),
]
_Timeout = Annotated[
    float, typer.Option("--timeout-s", min=1.0, callback=finite, help="How long each step may take at most.")
]


def apply(
    config: _File,
    *,
    dry_run: _DryRun = False,
    removed: _Removed = "refuse",
    yes: _Yes = False,
    app: _App = "headrace",
    redis_url: _RedisUrl = None,
    timeout_s: _Timeout = 600.0,
    as_json: AsJson = False,
) -> int:
    """Change a running service: models, pools, limits, engines.

    headrace apply config.yaml --dry-run

    It finds the service in the Ray at RAY_ADDRESS, or that of `headrace serve` on this machine. What did not change
    goes on undisturbed; what is exchanged hands over job by job. If the new cannot be made, the old comes back.
    """
    from headrace_cluster.config.settings import load_config
    from headrace_cluster.rollout.removal import Removed

    if removed not in set(Removed):
        raise typer.BadParameter(f"{removed!r} is none of {', '.join(Removed)}", param_hint="--removed")
    output, checked = Output(as_json=as_json), load_config(config)
    from headrace_cluster.rollout.change import Change  # which imports Ray
    from headrace_cluster.rollout.running_service import connected

    with _named_errors(), connected(app) as service:
        change = Change(service, checked, Removed(removed), redis_url=redis_url, timeout_s=timeout_s)
        plan = change.plan()
        _show(output, plan)
        if not plan or dry_run:
            output.emit({"dry_run": dry_run, **plan.to_dict()})
            return Exit.DONE
        _ask(yes=yes, as_json=as_json)
        with steps(as_json=as_json) as say, service.locked():
            outcome = change.apply(plan, say)
    output.emit({"applied": True, **plan.to_dict(), **outcome})
    output.show(f"applied: generation {outcome['generation']}")
    return Exit.DONE


@contextmanager
def _named_errors() -> Iterator[None]:
    from headrace_cluster.rollout.change import ApplyError
    from headrace_cluster.rollout.running_service import ApplyInProgressError, NoServiceError

    try:
        yield
    except NoServiceError as error:
        hint = "start one with `headrace serve --config FILE`, or name its cluster with RAY_ADDRESS, and it with --app"
        raise CommandError(str(error), code="no_service", hint=hint, status=Exit.UNAVAILABLE) from None
    except ApplyInProgressError as error:
        hint = "wait until it has ended, and look at the difference again with --dry-run"
        raise CommandError(str(error), code="apply_in_progress", hint=hint, status=Exit.FAILED) from None
    except ApplyError as error:
        raise CommandError(str(error), code=error.code, hint=error.hint, status=Exit.FAILED) from None


def _ask(*, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise CommandError("nothing was changed: nobody was there to ask", code="not_confirmed", hint="give --yes")
    if not typer.confirm("apply this?", err=True):
        raise CommandError("nothing was changed", code="not_confirmed", hint="", status=Exit.FAILED)


def _show(output: Output, plan: Plan) -> None:
    if not plan:
        output.show("nothing to change: the service is what the file says")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("what", "is", "becomes", "takes"):
        table.add_column(name)
    for change in plan.diff.changes:
        table.add_row(change.path, _text(change.old), _text(change.new), change.effect)
    output.show(table)
    for model, jobs in plan.live.items():
        output.show(f"{model} is removed and has {jobs:,} jobs")


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
