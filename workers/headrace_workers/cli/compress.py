"""`headrace compress`: from a model to an artifact, by a recipe or towards a target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from headrace.cli.options import AsJson
from headrace.cli.output import CommandError, Output
from headrace_workers.artifacts.artifact import Task
from headrace_workers.cli.recipe_options import complete_recipe, ready_names, with_settings
from headrace_workers.cli.search import DEFAULT_BUDGET_S, SearchOptions, search_for
from headrace_workers.cli.search import redecide as decide_again
from headrace_workers.cli.stage_bars import stage_bars

if TYPE_CHECKING:
    from headrace_workers.compression.recipe import Recipe

__all__ = ["compress"]

_TASKS = get_args(Task)

_Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A Hugging Face folder, a hub id, or a GGUF file.", show_default=False),
]
_Recipe = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", metavar="RECIPE", help="A YAML file, or a ready one.", autocompletion=complete_recipe
    ),
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="ARTIFACT", help="Where the artifact goes; must not exist.")
]
_Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", metavar="FILE", help='Texts, one a line, or a .jsonl of {"text", "label"}.'),
]
_Task = Annotated[
    str | None, typer.Option("--task", metavar="TASK", help=f"Of {', '.join(_TASKS)}; else the model's own.")
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PLACE=VALUE", help="Another value in the recipe: stages.0.training.steps=100."),
]
_KeepWork = Annotated[bool, typer.Option("--keep-work", help="Keep the stages' results also when all went well.")]
_Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Compute threads; else all cores.")]
_Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help='Search for a recipe that reaches this: "speed>=4x, drop<=1%"; -o is a folder for all it finds.',
    ),
]
_Budget = Annotated[float, typer.Option("--budget-s", min=1, help="With --target: seconds that the search may take.")]
_Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help='With --target: arrivals to replay, {"offset_s", "text"} a line.'),
]
_InProcess = Annotated[
    bool, typer.Option("--in-process", help="With --target: measure no finalist behind a service of its own.")
]
_Redecide = Annotated[
    Path | None,
    typer.Option("--redecide", metavar="FOLDER", help="Choose for this node from a search's folder; nothing is run."),
]
_List = Annotated[bool, typer.Option("--list-recipes", help="Say which recipes come with headrace, and what they do.")]


def compress(
    model: _Model = None,
    *,
    recipe: _Recipe = "int8",
    output: _Output = None,
    data: _Data = None,
    task: _Task = None,
    settings: _Set = None,
    keep_work: _KeepWork = False,
    threads: _Threads = None,
    target: _Target = None,
    budget_s: _Budget = DEFAULT_BUDGET_S,
    trace: _Trace = None,
    in_process: _InProcess = False,
    redecide: _Redecide = None,
    list_recipes: _List = False,
    as_json: AsJson = False,
) -> int:
    """Compress a model by a recipe: distil, prune, quantize, and measure what that came to.

    Interrupted, it goes on with the stage it was in: run the same again. A result that fails a gate of its recipe is
    rejected, and kept to look at.

    headrace compress ./minilm --recipe int8 -o ./minilm-int8

    headrace compress ./minilm --data texts.jsonl --target "speed>=4x, drop<=1%" -o ./search
    """
    if list_recipes:
        return _list_recipes(Output(as_json=as_json))
    if redecide is not None:
        return decide_again(redecide, target, threads=threads, as_json=as_json)
    if model is None or output is None:
        raise CommandError("a model and an output are needed", code="usage", hint="headrace compress MODEL -o ARTIFACT")
    _check_task(task)
    if target is not None:
        given = SearchOptions(data, task, budget_s, trace, threads, in_process)
        return search_for(model, target, output, given, as_json=as_json)
    from headrace_workers import node
    from headrace_workers.cli.report_table import report_lines
    from headrace_workers.compression import pipeline

    node.prepare_process(threads or len(os.sched_getaffinity(0)))
    with stage_bars(as_json=as_json) as progress:
        report = pipeline.compress(
            model,
            _recipe(recipe, settings or []),
            data,
            output,
            task=task,  # type: ignore[arg-type]  # it was checked
            keep_work=keep_work,
            progress=progress,
        )
    shown = Output(as_json=as_json)
    shown.emit(report.model_dump(mode="json"))
    shown.show(*report_lines(report))
    return 0


def _check_task(task: str | None) -> None:
    if task is not None and task not in _TASKS:
        raise typer.BadParameter(f"{task!r} is none of {', '.join(_TASKS)}", param_hint="--task")


def _recipe(name: str, settings: list[str]) -> Recipe:
    from headrace_workers.compression.recipe import parse_recipe, read_recipe

    recipe = read_recipe(name)
    if not settings:
        return recipe
    return parse_recipe(with_settings(recipe.model_dump(mode="json"), settings), f"{name} with --set")


def _list_recipes(output: Output) -> int:
    from headrace_workers.compression.recipe import read_recipe

    found: list[dict[str, Any]] = []
    for name in ready_names():
        recipe = read_recipe(name)
        stages = [stage.kind for stage in recipe.stages]
        found.append({"name": name, "stages": stages, "description": recipe.description})
        output.show(f"{name}: {' → '.join(stages)}", f"  {recipe.description}")
    output.emit({"recipes": found})
    return 0
