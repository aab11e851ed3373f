"""`headrace check`: is a configuration right, does its Redis fit, and does each of its models really answer?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.config.models import ModelConfig
    from headrace_cluster.config.settings import RedisConfig
    from headrace_workers.engines import Engine

__all__ = ["check"]

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration in YAML.")]
_SkipRedis = Annotated[bool, typer.Option("--skip-redis", help="Do not ask the Redis server that is named.")]


def check(config: _Config, *, skip_redis: _SkipRedis = False, as_json: AsJson = False) -> int:
    """Load every model of a configuration in this process, and push one example through it.

    Needs no Ray: run it before a rollout, on the machine that will serve. The Redis server that the configuration
    names, if it names one, is asked whether it fits.
    """
    from headrace_cluster.config.settings import load_config

    output = Output(as_json=as_json)
    checked = load_config(config)
    url = checked.redis_address.resolve() if checked.redis_address else ""
    with steps(as_json=as_json) as say:
        redis = None
        if url and not skip_redis:
            say("asking Redis")
            redis = _check_redis(url, checked.redis)
        models = {}
        for name, hosted in checked.models.items():
            say(f"loading {name}")
            models[name] = _check_model(name, hosted)
    output.emit({"config": str(config), "redis": redis, "models": models})
    output.show(_about_redis(redis), *(_about_model(name, report) for name, report in models.items()))
    return 0


def _check_redis(url: str, asked: RedisConfig) -> dict[str, Any]:
    from headrace.server.check import check_server
    from headrace.server.connection import redacted

    facts, findings = asyncio.run(check_server(url, checks=asked.checks, durability=asked.durability))
    return {
        "url": redacted(url),
        "server": facts.kind,
        "version": ".".join(map(str, facts.version)),
        "append_only": facts.append_only,
        "durability": facts.durability,
        "findings": [str(finding) for finding in findings],
    }


def _about_redis(report: dict[str, Any] | None) -> str:
    if report is None:
        return "redis: not asked"
    durable = "with" if report["append_only"] else "WITHOUT"
    return f"redis: {report['server']} {report['version']} at {report['url']}, {durable} an append-only file"


def _about_model(name: str, report: dict[str, Any]) -> str:
    return (
        f"{name}: {report['task']}, variant {report['variant']} on {report['device']}; "
        f"loaded in {report['load_s']:.2f} s, answered in {report['answer_ms']:.1f} ms"
    )


def _check_model(name: str, hosted: ModelConfig) -> dict[str, Any]:
    """Load it as a replica of its first pool would, and have it answer its own example."""
    from headrace.errors import ArtifactError, ModelLoadError
    from headrace_workers import node
    from headrace_workers.engines.factory import make_engine

    node.prepare_process(hosted.pools[0].threads)
    try:
        engine = make_engine(hosted.engine, device=hosted.pools[0].device)
        started = time.perf_counter()
        _answer_example(engine)
    except (ArtifactError, ModelLoadError) as error:
        raise type(error)(f"models.{name}: {error}") from error
    return {
        "task": engine.info.task,
        "variant": engine.info.variant,
        "device": engine.info.device,
        "load_s": engine.info.load_s,
        "answer_ms": (time.perf_counter() - started) * 1000,
        **engine.info.details,
    }


def _answer_example(engine: Engine) -> None:
    """Push the example through, up to the bytes that a consumer would read.

    Raises:
        ModelLoadError: it is not answered.
    """
    from headrace.errors import ModelLoadError
    from headrace.messages import pack_answer
    from headrace_workers.engines import ItemError

    try:
        item = engine.prepare([engine.example()])[0]
        answer = item if isinstance(item, ItemError) else engine.run([item])[0]
        if not isinstance(answer, ItemError):
            pack_answer(answer)
            return
        fault = answer.message
    except Exception as error:  # it may be the user's code
        fault = f"{type(error).__name__}: {error}"
    raise ModelLoadError(f"it is loaded, but does not answer its own example: {fault}")
