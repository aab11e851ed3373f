"""Telling a person what takes so long: one line on stderr that says what is being done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["steps"]


@contextmanager
def steps(*, as_json: bool) -> Iterator[Callable[[str], None]]:
    """Gives a function to say the present step with: a spinner on a terminal, else lines, nothing for `--json`."""
    if as_json:
        yield lambda _step: None
    elif not sys.stderr.isatty():
        yield lambda step: print(f"… {step}", file=sys.stderr, flush=True)
    else:
        with Console(stderr=True).status("") as spinner:
            yield lambda step: spinner.update(step)
