"""The options that commands share, each spelled once."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from headrace.messages.job import PRIORITIES
from headrace.messages.retry import RetryPolicy

__all__ = [
    "AsJson",
    "Attempts",
    "Model",
    "Params",
    "Priority",
    "RedisUrl",
    "Tenant",
    "finite",
    "parse_params",
    "retry_policy",
]

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        "-u",
        metavar="URL",
        help="The Redis server. Else HEADRACE_REDIS_URL, else a running `headrace serve`, else localhost.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, one object a line.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The name under which the service registered it.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="An option of the task; the value is JSON, or else text."),
]
Priority = Annotated[str, typer.Option("--priority", help="Of " + ", ".join(PRIORITIES) + ".")]
Tenant = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whom the work is done for.")]

Attempts = Annotated[
    int, typer.Option("--attempts", min=1, max=100, help="How often to run a job at most if the engine or pool fails.")
]


def finite(value: float | None) -> float | None:
    """Refuse what is a number to Python and to nobody else."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no length of time")
    return value


def retry_policy(attempts: int) -> RetryPolicy | None:
    """What `--attempts` asks for; one attempt is what every job has."""
    return RetryPolicy(attempts=attempts) if attempts > 1 else None


def parse_params(given: list[str] | None) -> dict[str, Any]:
    """What `--param` was given, by name; a value that is no JSON is a text."""
    params: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params
