"""The commands that need torch: `headrace` finds them by the entry point `headrace.commands`.

What takes seconds to import is imported inside the commands, so that asking for help does not cost it.
"""

from __future__ import annotations

import typer

from headrace_workers.cli.artifact import artifact
from headrace_workers.cli.compress import compress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(compress)
    app.add_typer(artifact, name="artifact")
