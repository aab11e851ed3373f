"""What a command says and how it ends: for people or for programs, never mixed.

For people: text on stdout, progress and errors on stderr. With `--json`: one JSON object a line on stdout,
the last of which is the command's result, or `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from rich.console import Console, RenderableType

from headrace.errors import (
    ArtifactError,
    CompressionDataError,
    ConfigError,
    GateError,
    HeadraceError,
    InvalidJobError,
    JobFailedError,
    ModelLoadError,
    QueueFullError,
    RecipeError,
    RedisError,
    RedisSetupError,
    RedisUnavailableError,
    ResultGoneError,
    ResultTimeoutError,
    ShardedModelError,
    UnknownModelError,
)

__all__ = [
    "EXIT_STATUSES",
    "CommandError",
    "Exit",
    "InterruptError",
    "Output",
    "Problem",
    "describe",
    "dump",
    "report",
    "warnings_on_stderr",
]

_LEAST_WIDTH: Final = 160


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    TIMED_OUT = 4
    INTERRUPTED = 130


EXIT_STATUSES: Final = (
    "Exit status: 0 done; 1 some job failed; 2 wrong usage or configuration; "
    "3 Redis or the service is unavailable; 4 timed out; 130 interrupted."
)


class CommandError(HeadraceError):
    """A command cannot go on, for a reason of its own.

    Args:
        message: what is wrong.
        code: the same, for programs.
        hint: what to do about it.
        status: how the command ends.
    """

    def __init__(self, message: str, *, code: str, hint: str, status: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.status = status


class InterruptError(CommandError):
    """The user pressed Ctrl-C."""

    def __init__(self, message: str = "interrupted", *, hint: str = "") -> None:
        super().__init__(message, code="interrupted", hint=hint, status=Exit.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the user is told of it."""

    code: str
    message: str
    hint: str
    status: Exit


_KINDS: Final[tuple[tuple[type[BaseException], Exit, str], ...]] = (
    (ShardedModelError, Exit.USAGE, "`headrace status` lists the shards"),
    (UnknownModelError, Exit.USAGE, "`headrace status` lists the models that are served"),
    (QueueFullError, Exit.UNAVAILABLE, "try again later, or have the service's limits raised"),
    (InvalidJobError, Exit.USAGE, ""),
    (RedisSetupError, Exit.USAGE, "change that, or name another server with --redis-url or HEADRACE_REDIS_URL"),
    (
        RedisUnavailableError,
        Exit.UNAVAILABLE,
        "start Redis or `headrace serve`, or name another server with --redis-url or HEADRACE_REDIS_URL",
    ),
    (RedisError, Exit.UNAVAILABLE, "see the server's log"),
    (ResultTimeoutError, Exit.TIMED_OUT, "the job goes on: `headrace status MODEL JOB_ID`, or a longer --timeout-s"),
    (ConfigError, Exit.USAGE, ""),
    (ArtifactError, Exit.USAGE, ""),
    (ModelLoadError, Exit.USAGE, ""),
    (RecipeError, Exit.USAGE, ""),
    (CompressionDataError, Exit.USAGE, ""),
    (GateError, Exit.FAILED, "`headrace artifact show` tells what was measured; its reports/eval.json has all of it"),
    (ResultGoneError, Exit.FAILED, ""),
    (HeadraceError, Exit.FAILED, ""),
    (OSError, Exit.USAGE, ""),
)


def describe(error: BaseException) -> Problem:
    """What to tell the user of an error, and how the command ends for it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, CommandError):
        return Problem(error.code, message, error.hint, error.status)
    if isinstance(error, JobFailedError):
        return Problem(error.failure.code, error.failure.message, error.failure.hint, Exit.FAILED)
    status, hint = next((status, hint) for kind, status, hint in _KINDS if isinstance(error, kind))
    return Problem(_code_of(type(error)), message, hint, status)


def _code_of(kind: type[BaseException]) -> str:
    name = "OSError" if issubclass(kind, OSError) and not issubclass(kind, HeadraceError) else kind.__name__
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error"))
    return words.lower()


def report(error: BaseException, *, as_json: bool) -> Exit:
    """Tell the user of an error; returns the exit status it stands for."""
    problem = describe(error)
    print(f"error: {problem.message}", file=sys.stderr)
    if problem.hint:
        print(f"hint: {problem.hint}", file=sys.stderr)
    if as_json:
        print(dump({"error": {"code": problem.code, "message": problem.message, "hint": problem.hint}}), flush=True)
    return problem.status


def dump(value: Any) -> str:
    """One line of JSON.

    Raises:
        ValueError: there is NaN or infinity in it, for which JSON has no words.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class Output:
    """Where a command's results go.

    Args:
        as_json: whether a program reads them.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def emit(self, fields: dict[str, Any]) -> None:
        """One JSON object, if a program reads."""
        if self.as_json:
            print(dump(fields), flush=True)

    def show(self, *lines: RenderableType) -> None:
        """Text or tables, if a person reads."""
        if not self.as_json:
            # Answers are data: nothing in them is markup, and a terminal breaks lines better than we cut columns.
            console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
            console.width = max(console.width, _LEAST_WIDTH)
            console.print(*lines, sep="\n")

    def note(self, text: str) -> None:
        """A remark on stderr, if a person reads."""
        if not self.as_json:
            print(text, file=sys.stderr)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Let the package's warnings through in the form of the command line, for as long as a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("headrace")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
