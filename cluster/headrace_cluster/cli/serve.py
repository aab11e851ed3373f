"""`headrace serve`: a whole service on this machine, until Ctrl-C."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.options import AsJson
from headrace.cli.output import CommandError, Exit, Output
from headrace.errors import HeadraceError
from headrace.server.connection import URL_VARIABLE, embedded_socket, redacted
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.local import LocalService

__all__ = ["serve"]

_Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME=MODEL", help="A model to host: a folder, an artifact, a GGUF file, or a hub id. Repeatable."
    ),
]
_Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="A configuration in YAML.")]
_Task = Annotated[str | None, typer.Option("--task", help="What the models named here do; else found out.")]
_Replicas = Annotated[int, typer.Option("--replicas", min=1, help="Replicas of each model named here.")]
_Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Where an embedded server keeps its data.")]
_Fsync = Annotated[str, typer.Option("--fsync", help="Of an embedded server: everysec, or always.")]
_RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url", "-u", metavar="URL", help="The Redis server. Else the environment's or the file's, else its own."
    ),
]
_Verbose = Annotated[bool, typer.Option("--verbose", help="Let the logs of Ray and of the replicas through.")]

_RAY_HINT: Final = "unset RAY_ADDRESS for a Ray of its own, or look whether it runs and RAY_AUTH_TOKEN is its token"


def serve(
    models: _Models = None,
    *,
    config: _Config = None,
    task: _Task = None,
    replicas: _Replicas = 1,
    redis_url: _RedisUrl = None,
    data: _Data = None,
    fsync: _Fsync = "everysec",
    verbose: _Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Host models on this machine, with a Redis server and a Ray of its own, unless RAY_ADDRESS names one.

    headrace serve minilm=./all-MiniLM-L6-v2 smollm=./SmolLM2-135M-Instruct.gguf

    Ctrl-C or SIGTERM stops it: what is in hand is finished, and the exit status is 0. A second one does not wait for
    that, and one that comes before it is ready ends it too, both with exit status 130.
    """
    if fsync not in ("everysec", "always"):
        raise typer.BadParameter("is everysec or always", param_hint="--fsync")
    output = Output(as_json=as_json)
    inline = _inline(models or [], task, replicas)
    if config is None and not inline:
        raise CommandError(
            "nothing to host", code="usage", hint="name a model (headrace serve minilm=./folder), or a --config"
        )
    from headrace_cluster.config.settings import load_config

    checked = load_config(config if config is not None else {"models": inline}, overrides=_overrides(redis_url))
    from headrace_cluster.local import LocalService  # which takes seconds to import

    directory = data or embedded_socket().parent
    service = LocalService(checked, directory=directory, fsync=fsync, verbose=verbose)  # type: ignore[arg-type]
    with steps(as_json=as_json) as say, ExitStack() as running:
        say("starting: server, Ray, routers and replicas")
        try:
            running.enter_context(service)
        except ConnectionError as error:
            raise CommandError(str(error), code="ray_unavailable", hint=_RAY_HINT, status=Exit.UNAVAILABLE) from None
        with suppress(KeyboardInterrupt):
            _announce(output, service, list(checked.models))  # whoever reads that it is ready may stop it at once
            threading.Event().wait()
        say("stopping: what is in hand is finished first")
    output.note("stopped")
    return Exit.DONE


def _inline(models: list[str], task: str | None, replicas: int) -> dict[str, Any]:
    """The configuration of models that are named as NAME=MODEL."""
    configured: dict[str, Any] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"{text!r} is not NAME=MODEL", param_hint="NAME=MODEL")
        configured[name] = {"engine": _engine(path, task), "pools": [{"replicas": replicas}]}
    return configured


def _engine(path: str, task: str | None) -> dict[str, Any]:
    """A decoder for a language model, by the task that was named or its files; else an encoder."""
    if (task or _task_of(path)) == "causal_lm":
        return {"kind": "decoder", "model": path}
    return {"kind": "encoder", "model": path} | ({"task": task} if task else {})


def _task_of(path: str) -> str:
    from headrace_workers.models.source import find_source  # which takes a second to import

    try:
        return find_source(path).task(None)
    except HeadraceError:  # the replica will say what is wrong with it
        return ""


def _overrides(redis_url: str | None) -> dict[str, Any]:
    return {"redis_url": redis_url} if redis_url else {}


def _announce(output: Output, service: LocalService, models: list[str]) -> None:
    output.emit({"redis_url": redacted(service.url), "models": models, "ready": True})
    output.show(
        f"serving {', '.join(models)} at {redacted(service.url)}",
        f'try:  headrace submit {models[0]} "water flows downhill"',
        f"other programs: {URL_VARIABLE}={redacted(service.url)}   stop: Ctrl-C",
    )
