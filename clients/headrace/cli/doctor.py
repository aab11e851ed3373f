"""`headrace doctor`: what is wrong, why that matters, and what to type against it."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from headrace.cli.options import AsJson, RedisUrl
from headrace.cli.output import Exit, Output
from headrace.cli.running import run_to_end
from headrace.doctor import Case, Diagnosis, Level, examine_keys, examine_redis, worst
from headrace.server.connection import redacted, resolve_url

__all__ = ["doctor"]

log = logging.getLogger("headrace.cli")

_GROUP: Final = "headrace.doctor"
_MARKS: Final = {Level.OK: ("ok", "green"), Level.WARN: ("warn", "yellow"), Level.ERROR: ("error", "red")}

_Config = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="A service's configuration: looked at with all it names.")
]
_Ray = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="ADDRESS", help="The Ray cluster. Else RAY_ADDRESS, else one on this machine."
    ),
]
_Strict = Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings, too.")]


def doctor(
    config: _Config = None,
    *,
    redis_url: RedisUrl = None,
    ray_address: _Ray = None,
    strict: _Strict = False,
    as_json: AsJson = False,
) -> int:
    """Examine Redis and what lies there; with the cluster extra also Ray, GPUs, and a configuration with its artifacts.

    Changes nothing. Each finding says what is so, why that matters, and the command that makes it right. Give the URL
    of an admin (`headrace acl admin`) to have everything seen.

    Exit status 1 if something is wrong; warnings are no reason, unless --strict.
    """
    case = Case(config=config, redis_url=redis_url, ray_address=ray_address)
    found = _elsewhere(case)
    url = case.redis_url or resolve_url()
    found += run_to_end(_in_redis(url, case))
    output = Output(as_json=as_json)
    level = worst(found)
    output.emit(
        {"redis": redacted(url), "worst": level.name.lower(), "findings": [_fields(diagnosis) for diagnosis in found]}
    )
    output.show(*_render(found, url))
    return Exit.FAILED if level >= (Level.WARN if strict else Level.ERROR) else Exit.DONE


async def _in_redis(url: str, case: Case) -> list[Diagnosis]:
    server = await examine_redis(url, durability=case.durability)
    away = len(server) == 1 and server[0].level is Level.ERROR
    return server if away else server + await examine_keys(url)


def _elsewhere(case: Case) -> list[Diagnosis]:
    """What other packages look at."""
    found: list[Diagnosis] = []
    points = list(entry_points(group=_GROUP))
    for point in points:
        try:
            found += point.load()(case)
        except ImportError as error:  # its extra is not installed
            log.debug("the examiner %s: %s", point.value, error)
            points = [other for other in points if other is not point]
    if not points and (case.config or case.ray_address):
        fix = "pip install 'headrace[cluster]'"
        what = "neither a configuration nor Ray can be looked at by the light client"
        found.append(Diagnosis("config", Level.WARN, what, "what is wrong there is not seen", fix))
    return found


def _fields(diagnosis: Diagnosis) -> dict[str, str]:
    return {
        "subject": diagnosis.subject,
        "level": diagnosis.level.name.lower(),
        "what": diagnosis.what,
        "why": diagnosis.why,
        "fix": diagnosis.fix,
    }


def _render(found: list[Diagnosis], url: str) -> list[RenderableType]:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for name in ("level", "subject"):
        table.add_column(name, no_wrap=True)
    table.add_column("finding", overflow="fold")
    for diagnosis in found:
        mark, style = _MARKS[diagnosis.level]
        lines = Text(diagnosis.what)
        if diagnosis.why:
            lines.append(f"\nwhy: {diagnosis.why}\nfix: {diagnosis.fix}", style="dim")
        table.add_row(Text(mark, style=style), diagnosis.subject, lines)
    errors = sum(diagnosis.level is Level.ERROR for diagnosis in found)
    warnings = sum(diagnosis.level is Level.WARN for diagnosis in found)
    return [f"Redis at {redacted(url)}", table, f"{errors} errors, {warnings} warnings"]
