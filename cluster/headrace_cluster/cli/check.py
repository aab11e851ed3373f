"""`headrace check`: is a configuration right, and does each of its models really answer?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.settings import ModelConfig

__all__ = ["check"]

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A configuration in YAML.")]


def check(config: _Config, *, as_json: AsJson = False) -> int:
    """Load every model of a configuration in this process, and push one example through it.

    Needs neither Redis nor Ray: run it before a rollout, on the machine that will serve.
    """
    from headrace_cluster.settings import load_config

    output = Output(as_json=as_json)
    checked = load_config(config)
    reports = {}
    with steps(as_json=as_json) as say:
        for name, hosted in checked.models.items():
            say(f"loading {name}")
            reports[name] = _check_model(name, hosted)
    output.emit({"config": str(config), "models": reports})
    for name, report in reports.items():
        output.show(
            f"{name}: {report['task']}, variant {report['variant']} on {report['device']}; "
            f"loaded in {report['load_s']:.2f} s, answered in {report['answer_ms']:.1f} ms"
        )
    return 0


def _check_model(name: str, hosted: ModelConfig) -> dict[str, Any]:
    from headrace.errors import ModelLoadError
    from headrace_workers import node
    from headrace_workers.engines import ItemError
    from headrace_workers.engines.factory import make_engine

    node.prepare_process(hosted.pools[0].threads)
    engine = make_engine(hosted.engine)
    started = time.perf_counter()
    item = engine.prepare([engine.example()])[0]
    answer = item if isinstance(item, ItemError) else engine.run([item])[0]
    if isinstance(answer, ItemError):
        raise ModelLoadError(f"{name} is loaded, but does not answer its own example: {answer.message}")
    return {
        "task": engine.info.task,
        "variant": engine.info.variant,
        "device": engine.info.device,
        "load_s": engine.info.load_s,
        "answer_ms": (time.perf_counter() - started) * 1000,
        **engine.info.details,
    }
