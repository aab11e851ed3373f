"""The command line `headrace`: hand jobs over, read answers, look at the lanes, run a whole file.

Importing this costs nothing beyond the package itself: Typer and Rich are the extra `cli`, and whoever
starts the command without them is told what to install.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (by default this process's) and return its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import rich  # noqa: F401  # looked for, so that what is missing is named here and not halfway through
        import typer  # noqa: F401
    except ImportError as missing:
        return _say_what_to_install(missing.name or "typer", as_json="--json" in given)
    from headrace.cli.app import run

    return run(given)


def _say_what_to_install(name: str, *, as_json: bool) -> int:
    message, hint = f"the command line needs the package {name}", "pip install 'headrace[cli]'"
    print(f"error: {message}: {hint}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"code": "missing_extra", "message": message, "hint": hint}}))
    return 2
