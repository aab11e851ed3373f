"""The commands that need the cluster: `headrace` finds them by the entry point `headrace.commands`.

Their modules import ray and torch inside the commands, so that asking for help costs neither.
"""

from __future__ import annotations

import typer

from headrace_cluster.cli.apply import apply
from headrace_cluster.cli.bench import bench
from headrace_cluster.cli.check import check
from headrace_cluster.cli.demo import demo
from headrace_cluster.cli.serve import serve
from headrace_cluster.cli.simulate import simulate

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(serve)
    app.command()(apply)
    app.command()(check)
    app.command()(demo)
    app.command()(simulate)
    app.add_typer(bench, name="bench")
