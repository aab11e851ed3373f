"""`headrace serve`: a whole service on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson, RedisUrl
from headrace.cli.output import CommandError, Output
from headrace.connection import URL_VARIABLE, embedded_socket, redacted
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.local import LocalService

__all__ = ["serve"]

_Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME=MODEL", help="A model to host: a folder, an artifact, or a hub id. Repeatable."),
]
_Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="A configuration in YAML.")]
_Task = Annotated[str | None, typer.Option("--task", help="What the models named here do; else found out.")]
_Replicas = Annotated[int, typer.Option("--replicas", min=1, help="Replicas of each model named here.")]
_Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Where an embedded server keeps its data.")]
_Fsync = Annotated[str, typer.Option("--fsync", help="Of an embedded server: everysec, or always.")]
_Verbose = Annotated[bool, typer.Option("--verbose", help="Let the logs of Ray and of the replicas through.")]


def serve(
    models: _Models = None,
    *,
    config: _Config = None,
    task: _Task = None,
    replicas: _Replicas = 1,
    redis_url: RedisUrl = None,
    data: _Data = None,
    fsync: _Fsync = "everysec",
    verbose: _Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Host models on this machine, with a Redis server of its own unless one is named.

    headrace serve minilm=./all-MiniLM-L6-v2
    """
    from headrace_cluster.local import LocalService
    from headrace_cluster.settings import load_config

    if fsync not in ("everysec", "always"):
        raise typer.BadParameter("is everysec or always", param_hint="--fsync")
    output = Output(as_json=as_json)
    inline = _inline(models or [], task, replicas)
    if config is None and not inline:
        raise CommandError(
            "nothing to host", code="usage", hint="name a model (headrace serve minilm=./folder), or a --config"
        )
    checked = load_config(config if config is not None else {"models": inline}, overrides=_overrides(redis_url))
    directory = data or embedded_socket().parent
    with (
        steps(as_json=as_json) as say,
        _starting(say, LocalService(checked, directory=directory, fsync=fsync, verbose=verbose)) as service,  # type: ignore[arg-type]
    ):
        _announce(output, service, list(checked.models))
        _until_interrupted()
    output.note("stopped")
    return 0


def _inline(models: list[str], task: str | None, replicas: int) -> dict[str, Any]:
    """The configuration of models that are named as NAME=MODEL."""
    configured: dict[str, Any] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"{text!r} is not NAME=MODEL", param_hint="NAME=MODEL")
        engine = {"kind": "encoder", "model": path} | ({"task": task} if task else {})
        configured[name] = {"engine": engine, "pools": [{"replicas": replicas}]}
    return configured


def _overrides(redis_url: str | None) -> dict[str, Any]:
    return {"redis_url": redis_url} if redis_url else {}


def _starting(say: Any, service: LocalService) -> LocalService:
    say("starting: server, Ray, routers and replicas")
    return service


def _announce(output: Output, service: LocalService, models: list[str]) -> None:
    output.emit({"redis_url": redacted(service.url), "models": models, "ready": True})
    output.show(
        f"serving {', '.join(models)} at {redacted(service.url)}",
        f'try:  headrace submit {models[0]} "water flows downhill"',
        f"other programs: {URL_VARIABLE}={redacted(service.url)}   stop: Ctrl-C",
    )


def _until_interrupted() -> None:
    """Wait for Ctrl-C, or for the signal with which service managers stop a program."""
    stopped = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(0.5):
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
