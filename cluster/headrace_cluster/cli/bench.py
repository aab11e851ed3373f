"""`headrace bench`: the benchmarks, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace_cluster.cli.steps import steps

__all__ = ["bench"]

bench = typer.Typer(help="Measure headrace on this node, against a limit and against its neighbours.")

_Quick = Annotated[bool, typer.Option("--quick", help="A short look: fewer jobs and rounds, rougher figures.")]
_Peers = Annotated[
    Path | None,
    typer.Option("--peers", metavar="DIR", help="Environments of other queues, as `make peers` makes them."),
]
_Texts = Annotated[Path | None, typer.Option("--texts", metavar="FILE", help="The texts to use, one a line.")]
_Model = Annotated[str | None, typer.Option("--model", help="A folder or a hub id; else the package all-MiniLM-L6-v2.")]


@bench.command()
def transport(*, quick: _Quick = False, peers: _Peers = None, as_json: AsJson = False) -> int:
    """Jobs a second with an engine that does nothing: against a hand-written pipeline, and other queues."""
    from headrace_cluster.bench.transport import TransportPlan, run_transport

    plan = TransportPlan.quick(peers) if quick else TransportPlan(peers=peers)
    with steps(as_json=as_json) as say:
        report = run_transport(plan, say)
    return _tell(report.to_json(), as_json=as_json)


@bench.command()
def e2e(*, quick: _Quick = False, texts: _Texts = None, model: _Model = None, as_json: AsJson = False) -> int:
    """Texts a second through the whole system: against the same model in process, padded fp32, and `@serve.batch`."""
    from headrace_cluster.bench.e2e import E2ePlan, run_e2e

    plan = E2ePlan.quick() if quick else E2ePlan()
    with steps(as_json=as_json) as say:
        report = run_e2e(plan, say, model=model, texts_file=texts)
    return _tell(report.to_json(), as_json=as_json)


@bench.command()
def kernels(*, quick: _Quick = False, model: _Model = None, as_json: AsJson = False) -> int:
    """The int8 linear layer against fp32, for every shape of the model."""
    from headrace_cluster.bench.kernels import run_kernels

    with steps(as_json=as_json) as say:
        report = run_kernels(say, model=model, quick=quick)
    return _tell(report, as_json=as_json)


@bench.command()
def compression(
    *,
    quick: _Quick = False,
    peers: _Peers = None,
    only: Annotated[str, typer.Option("--only", help="One part: int8, sparse, student or language.")] = "",
    as_json: AsJson = False,
) -> int:
    """Size, speed and quality of compressed models, technique by technique, and beside other libraries'."""
    from headrace_cluster.bench.compression import PARTS, run_compression

    if only not in ("", *PARTS):
        raise typer.BadParameter(f"{only!r} is none of {', '.join(PARTS)}", param_hint="--only")
    with steps(as_json=as_json) as say:
        report = run_compression(say, quick=quick, peers=peers, only=only)
    return _tell(report, as_json=as_json)


@bench.command()
def generate(
    *,
    quick: _Quick = False,
    peers: _Peers = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A path or a hub id; else the package SmolLM2-135M-Instruct.")
    ] = None,
    draft: Annotated[
        str, typer.Option("--draft", help="A smaller model of the same vocabulary, whose guesses are tried.")
    ] = "",
    only: Annotated[str, typer.Option("--only", help="One part: peers, prefix, draft or system.")] = "",
    as_json: AsJson = False,
) -> int:
    """New tokens a second of a language model: beside llama.cpp and transformers, and through the whole system."""
    from headrace_cluster.bench.generate import PARTS, GeneratePlan, run_generate

    if only not in ("", *PARTS):
        raise typer.BadParameter(f"{only!r} is none of {', '.join(PARTS)}", param_hint="--only")
    if only == "draft" and not draft:
        raise typer.BadParameter("there is none to measure: name one by --draft", param_hint="--only")
    plan = GeneratePlan.quick(peers, draft=draft) if quick else GeneratePlan(peers=peers, draft=draft)
    with steps(as_json=as_json) as say:
        report = run_generate(plan, say, model=model, only=only)
    return _tell(report.to_json(), as_json=as_json)


@bench.command()
def scale(
    *,
    quick: _Quick = False,
    only: Annotated[
        str, typer.Option("--only", help="One part: replicas, routers, routing, fifo or autoscaling.")
    ] = "",
    as_json: AsJson = False,
) -> int:
    """What is lost, or saved, as a service grows: replicas, routers, models, waiting jobs, mixed lengths."""
    from headrace_cluster.bench.scale import PARTS, run_scale

    if only not in ("", *PARTS):
        raise typer.BadParameter(f"{only!r} is none of {', '.join(PARTS)}", param_hint="--only")
    with steps(as_json=as_json) as say:
        report = run_scale(say, quick=quick, only=only)
    return _tell(report, as_json=as_json)


@bench.command()
def engine(
    *,
    quick: _Quick = False,
    model: _Model = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="On the GPU, in fp32, fp16 and bf16.")] = False,
    as_json: AsJson = False,
) -> int:
    """Texts a second of one engine in process, in every precision that the device has, and their agreement."""
    from headrace_cluster.bench.engine import EnginePlan, run_engine
    from headrace_workers import node

    precisions = ("fp32", "int8", "bf16") if node.capabilities().bf16 and not gpu else ("fp32", "int8")
    plan = EnginePlan(
        device="cuda" if gpu else "cpu",
        precisions=("fp32", "fp16", "bf16", "int8") if gpu else precisions,
        texts=128 if quick else 16_384 if gpu else 2_048,
        batch_jobs=1024 if gpu else 256,
        rounds=1 if quick else 3,
    )
    with steps(as_json=as_json) as say:
        report = run_engine(plan, say, model=model)
    return _tell(report, as_json=as_json)


@bench.command("cold-start")
def cold_start(*, quick: _Quick = False, model: _Model = None, as_json: AsJson = False) -> int:
    """Seconds from the start of a replica's process until its engine has answered, phase by phase."""
    from headrace_cluster.bench.cold_start import run_cold_start

    with steps(as_json=as_json) as say:
        report = run_cold_start(say, model=model, rounds=1 if quick else 5)
    return _tell(report, as_json=as_json)


@bench.command()
def observability(*, quick: _Quick = False, model: _Model = None, as_json: AsJson = False) -> int:
    """What metrics and traces cost as they are by default: the same jobs through a service with and one without."""
    from headrace_cluster.bench.observability import ObservabilityPlan, run_observability

    plan = ObservabilityPlan.quick() if quick else ObservabilityPlan()
    with steps(as_json=as_json) as say:
        report = run_observability(plan, say, model=model)
    return _tell(report, as_json=as_json)


def _tell(report: dict[str, Any], *, as_json: bool) -> int:
    """The report as one JSON object, or as a table."""
    output = Output(as_json=as_json)
    output.emit(report)
    table = Table("figure", "value")
    for name, value in report.items():
        if isinstance(value, list):
            _show_rows(output, value)
        else:
            table.add_row(name, _text(value))
    output.show(table)
    return 0


def _show_rows(output: Output, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    output.show(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "–"
    return "–" if value is None else str(value)
