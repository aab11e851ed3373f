"""`headrace artifact`: what is in an artifact, whether it is whole, how two of them differ, and other forms of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace.cli.rendering import visible

__all__ = ["artifact"]

artifact = typer.Typer(no_args_is_help=True, help="Work with artifacts: show, verify, diff, merge, export.")

_Path = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Its directory.")]
_Other = Annotated[Path, typer.Argument(metavar="OTHER", help="Another one.")]
_Layers = Annotated[bool, typer.Option("--layers", help="Name every compressed module, and its scheme.")]
_Format = Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help="onnx, torch or executorch.")]
_Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.")]
_Variant = Annotated[str | None, typer.Option("--variant", metavar="NAME", help="Which variant; else the first.")]


@artifact.command()
def show(path: _Path, *, layers: _Layers = False, as_json: AsJson = False) -> int:
    """Say what an artifact is, where it comes from, and what was measured of it. It is verified first."""
    from headrace_workers.artifacts.artifact import open_artifact
    from headrace_workers.compression.description import describe_artifact

    described = describe_artifact(open_artifact(path))
    output = Output(as_json=as_json)
    output.emit(described)
    output.show(visible(f"{path}: {described['task']}, made of {described['source']} at {described['created_at']}"))
    for step in described["lineage"]:
        output.show(visible(f"  {step}"))
    output.show(_metrics_table(described["metrics"]))
    for variant in described["variants"]:
        output.show(_variant_line(variant))
        if layers:
            output.show(*(visible(f"  {name}  {scheme}") for name, scheme in variant["layers"].items()))
    return 0


@artifact.command()
def verify(path: _Path, *, as_json: AsJson = False) -> int:
    """Compare every file with the hash that the manifest promises, and decode every tensor."""
    from headrace_workers.artifacts.artifact import open_artifact

    opened = open_artifact(path)
    for name in opened.manifest.variants:
        opened.tensors(opened.variant(name))
    files, size = len(opened.manifest.files), sum(entry.bytes for entry in opened.manifest.files.values())
    output = Output(as_json=as_json)
    output.emit({"artifact": str(path), "whole": True, "files": files, "bytes": size})
    output.show(visible(f"{path} is whole: {files} files, {size:,} bytes"))
    return 0


@artifact.command()
def diff(one: _Path, other: _Other, *, as_json: AsJson = False) -> int:
    """Say how two artifacts differ: manifests, sizes, metrics, schemes, and how far weights are apart."""
    from headrace_workers.artifacts.artifact import open_artifact
    from headrace_workers.compression.description import compare_artifacts

    found = compare_artifacts(open_artifact(one), open_artifact(other))
    output = Output(as_json=as_json)
    output.emit(found)
    for title, rows in found.items():
        if rows:
            output.show(_diff_table(title, rows))
    if not any(found.values()):
        output.show("no difference")
    return 0


@artifact.command()
def export(
    path: _Path, *, format_: _Format = "onnx", output: _Output, variant: _Variant = None, as_json: AsJson = False
) -> int:
    """Write an artifact in another form: ONNX, `torch.export`, or ExecuTorch."""
    from headrace_workers.artifacts.artifact import open_artifact
    from headrace_workers.compression.edge.export import export_artifact

    export_artifact(open_artifact(path), format_, output, variant=variant)  # type: ignore[arg-type]  # it is checked
    size = output.stat().st_size
    shown = Output(as_json=as_json)
    shown.emit({"output": str(output), "format": format_, "bytes": size})
    shown.show(visible(f"{output}: {format_}, {size:,} bytes"))
    return 0


@artifact.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Two or more, of one model.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ARTIFACT", help="Where it goes; must not exist.")],
    as_json: AsJson = False,
) -> int:
    """Make one artifact of several, with all their variants. A node runs the first that is made for it."""
    from headrace_workers.compression.merging import merge_artifacts

    merged = merge_artifacts(paths, output)
    size = sum(entry.bytes for entry in merged.manifest.files.values())
    shown = Output(as_json=as_json)
    shown.emit({"artifact": str(output), "variants": merged.manifest.variants, "bytes": size})
    shown.show(visible(f"{output}: {', '.join(merged.manifest.variants)}, {size:,} bytes"))
    return 0


def _metrics_table(metrics: dict[str, float]) -> Table:
    table = Table("figure", "value", box=None, header_style="dim")
    for name, value in metrics.items():
        table.add_row(name, _text(value))
    return table


def _variant_line(variant: dict[str, Any]) -> str:
    schemes = ", ".join(f"{count} {scheme}" for scheme, count in variant["schemes"].items()) or "no layer compressed"
    return f"variant {variant['name']}: {variant['bytes']:,} bytes, {variant['parameters']:,} parameters; {schemes}"


def _diff_table(title: str, rows: dict[str, Any]) -> Table:
    pairs = all(isinstance(value, tuple) for value in rows.values())
    table = Table(
        title.replace("_", " "), *(("one", "other") if pairs else ("apart by",)), box=None, header_style="dim"
    )
    for name, value in rows.items():
        table.add_row(visible(name), *(visible(_text(part)) for part in (value if pairs else (value,))))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
