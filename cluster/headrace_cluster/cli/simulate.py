"""`headrace simulate`: what would a cluster do with such a load, and what would others?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headrace.cli.options import AsJson
from headrace.cli.output import Output
from headrace_cluster.cli.steps import steps

if TYPE_CHECKING:
    from headrace_cluster.simulation.simulation import Simulation

__all__ = ["simulate"]

_Trace = Annotated[
    str | None, typer.Argument(metavar="TRACE", help="A file, or the name of a trace that comes with headrace.")
]
_Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write plots to it: .html or .svg.")]
_Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Other draws of the same trace.")]
_Seeds = Annotated[int, typer.Option("--seeds", min=1, help="So many draws of it; then medians and spreads.")]
_Only = Annotated[list[str] | None, typer.Option("--only", metavar="POLICY", help="Leave out other policies; repeat.")]
_Processes = Annotated[int | None, typer.Option("--processes", min=1, help="How many work at it; else one a core.")]
_List = Annotated[bool, typer.Option("--list", help="Name the traces that come with headrace.")]
_Check = Annotated[
    bool, typer.Option("--check", help="Run a service on this machine, and compare it with its own simulation.")
]


def simulate(
    trace: _Trace = None,
    *,
    plot: _Plot = None,
    seed: _Seed = None,
    seeds: _Seeds = 1,
    only: _Only = None,
    processes: _Processes = None,
    list_traces: _List = False,
    check: _Check = False,
    as_json: AsJson = False,
) -> int:
    """Run a trace of arrivals through headrace's own scheduling and scaling, under a simulated clock.

    Beside it: Serve's own batches and autoscaler, fixed numbers of replicas, and what nobody could beat.
    """
    output = Output(as_json=as_json)
    if list_traces:
        return _list(output)
    if check:
        return _check(output)
    if trace is None:
        raise typer.BadParameter("name a trace, or see `headrace simulate --list`", param_hint="TRACE")
    if seeds > 1 and plot is not None:
        raise typer.BadParameter("plots are of one seed: leave out --seeds", param_hint="--plot")
    return _simulate(output, trace, plot=plot, seed=seed, seeds=seeds, only=only, processes=processes)


def _list(output: Output) -> int:
    from headrace_cluster.simulation.trace import load_trace, shipped_traces

    table = Table("trace", "about")
    for name in shipped_traces():
        trace = load_trace(name)
        output.emit({"trace": name, "title": trace.title, "about": trace.about})
        table.add_row(name, trace.about.strip())
    output.show(table)
    return 0


def _simulate(
    output: Output,
    name: str,
    *,
    plot: Path | None,
    seed: int | None,
    seeds: int,
    only: list[str] | None,
    processes: int | None,
) -> int:
    from headrace_cluster.simulation.page import write_plot
    from headrace_cluster.simulation.policies import POLICIES
    from headrace_cluster.simulation.report import to_json
    from headrace_cluster.simulation.seeds import over_seeds, summary
    from headrace_cluster.simulation.trace import load_trace

    chosen = [policy for policy in POLICIES if not only or policy.name in (*only, POLICIES[0].name)]
    if unknown := set(only or ()) - {policy.name for policy in POLICIES}:
        raise typer.BadParameter(f"{sorted(unknown)[0]!r} is none of {', '.join(p.name for p in POLICIES)}")
    trace = load_trace(name)
    if seed is not None:
        trace = trace.model_copy(update={"seed": seed})
    simulations = []
    with _bar(as_json=output.as_json) as progress:
        for simulation in over_seeds(trace, seeds, policies=chosen, processes=processes, progress=progress):
            simulations.append(simulation)
            output.emit(to_json(simulation))
    if plot is not None:
        write_plot(simulations[0], plot)
    if seeds == 1:
        _show(output, simulations[0])
    else:
        output.emit(summary(simulations))
        _show_spreads(output, simulations)
    return 0


@contextmanager
def _bar(*, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _show(output: Output, simulation: Simulation) -> None:
    from headrace_cluster.simulation.report import COLUMNS, comparisons, row

    ours = simulation.ours
    table = Table(*COLUMNS)
    for name, figures in simulation.policies.items():
        table.add_row(*row(name, figures))
    if ours.cost_over_planner is not None:
        planned = ours.cost_over_oracle / ours.cost_over_planner
        table.add_row("planner", f"{ours.planner_attainment:.2%}", f"{planned:.2f}", *[""] * (len(COLUMNS) - 3))
    table.add_row("oracle", f"{ours.oracle_attainment:.2%}", "1.00", *[""] * (len(COLUMNS) - 3))
    output.show(
        f"{simulation.trace.title}: {ours.jobs:,} jobs for {len(simulation.trace.named_models)} models in"
        f" {simulation.horizon_s:,.0f} s, simulated in {simulation.seconds:.1f} s",
        table,
        *(f"headrace {words}" for words, _ in comparisons(simulation)),
    )


def _show_spreads(output: Output, simulations: list[Simulation]) -> None:
    from headrace_cluster.simulation.seeds import COMPARED, spreads, summary

    table = Table("policy", *(name.replace("_", " ") for name in COMPARED))
    for policy, figures in spreads(simulations).items():
        cells = (
            f"{spread.median:.4f} ({spread.least:.4f} to {spread.most:.4f})" if (spread := figures.get(name)) else ""
            for name in COMPARED
        )
        table.add_row(policy, *cells)
    first = simulations[0]
    output.show(
        f"{first.trace.title}: {first.ours.jobs:,} jobs with {len(simulations)} seeds, from {first.trace.seed} on",
        table,
        *(f"headrace with seed {row['seed']} {row['words']}" for row in summary(simulations)["not_better"]),
    )


def _check(output: Output) -> int:
    from headrace_cluster.simulation.calibration import run_calibration

    with steps(as_json=output.as_json) as say:
        report = run_calibration(say)
    output.emit(report.to_json())
    table = Table("figure", "real", "simulated", "difference")
    for name, real, simulated in report.rows:
        table.add_row(name, f"{real:,.4g}", f"{simulated:,.4g}", f"{simulated / real - 1:+.1%}")
    output.show(table)
    return 0 if report.within else 1
