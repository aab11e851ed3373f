"""`headrace compress --target` and `--redecide`: the search for a recipe, and its answer for another node.

`compress` calls the functions here; what takes seconds to import is imported in them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from headrace.cli.output import CommandError, Exit, InterruptError, Output

if TYPE_CHECKING:
    from headrace_workers.compression.search.front import Decision, Entry, Front
    from headrace_workers.compression.search.trial import ModelStudy

__all__ = ["DEFAULT_BUDGET_S", "SearchOptions", "redecide", "search_for"]

DEFAULT_BUDGET_S: Final = 1800.0


@dataclass(frozen=True)
class SearchOptions:
    """How a search is to be done."""

    data: Path | None = None
    """A file of examples; None: sentences that ship with headrace, which are good enough to quantize by."""
    task: str | None = None
    """What the model is for; None: what its files say."""
    budget_s: float = DEFAULT_BUDGET_S
    trace: Path | None = None
    """Arrivals to replay behind the service; None: Poisson arrivals at several loads."""
    threads: int | None = None
    """Of training and of a replica; None: all cores."""
    in_process: bool = False
    """Whether no finalist is measured behind a service."""


def search_for(model: str, target: str, output: Path, options: SearchOptions, *, as_json: bool = False) -> int:
    """Search for a recipe that reaches a target, and tell of it.

    Args:
        model: a Hugging Face folder or a hub id.
        target: what shall be reached: `speed>=4x, drop<=1%`.
        output: a directory for the front, its report, journal and artifacts; that of an earlier search goes on.
        options: how.
        as_json: for programs.

    Raises:
        GateError: the target is not met, although all was tried. The front is written and told all the same.
        CommandError: the budget ended before it was met.
        InterruptError: Ctrl-C; what was found so far is written.
    """
    from headrace_workers.compression.search.page import write_report
    from headrace_workers.compression.search.study_search import search
    from headrace_workers.compression.search.target import parse_target

    wanted, out = parse_target(target), Output(as_json=as_json)
    with _progress(as_json=as_json) as say:
        front = search(_study(model, output, options, out), wanted, output, budget_s=options.budget_s, say=say)
    report = write_report(front, output)
    out.emit(_fields(front, output, report))
    out.show(*_lines(front, output, report))
    return _status(front, output)


def redecide(folder: Path, target: str | None = None, *, threads: int | None = None, as_json: bool = False) -> int:
    """Decide for this node from the front that a search left on another, without training or running anything.

    Args:
        folder: of the search; the decision is written into it.
        target: None: the search's own.
        threads: of a replica; None: as many as the search had.
        as_json: for programs.

    Raises:
        CompressionError: there is no front in the folder.
        GateError: no entry meets the target here; the nearest is told all the same.
    """
    from headrace.errors import GateError
    from headrace_workers import node
    from headrace_workers.compression.search.front import decide, read_front, write_whole
    from headrace_workers.compression.search.latency_table import load_table, measure_shapes, probe_node
    from headrace_workers.compression.search.target import parse_target

    front, out = read_front(folder), Output(as_json=as_json)
    wanted = parse_target(target or front.target)
    count = threads or front.node.threads
    node.prepare_process(count)
    uses = [*front.original, *(use for entry in front.entries for use in entry.uses)]
    table = load_table(folder / "latency", probe_node(count)).extended(uses, measure_shapes)
    table.write(folder / "latency")
    decision = decide(front, wanted, table)
    write_whole(folder / "decisions" / f"{table.node.fingerprint}.json", decision.model_dump_json(indent=1))
    out.emit(decision.model_dump(mode="json"))
    out.show(_decided(decision, front), f"run {decision.name!r} here: {folder / decision.artifact}")
    if decision.shortfalls:
        raise GateError(f"the target {wanted} is not met on this node: {'; '.join(decision.shortfalls)}")
    return Exit.DONE


def _study(model: str, folder: Path, options: SearchOptions, out: Output) -> ModelStudy:
    from headrace_workers.compression.data import read_examples, split
    from headrace_workers.compression.labels import in_the_models_order
    from headrace_workers.compression.sample_texts import sample_texts
    from headrace_workers.compression.search.served import find_measure, read_trace
    from headrace_workers.compression.search.trial import ModelStudy
    from headrace_workers.compression.subject import load_subject
    from headrace_workers.models.source import find_source

    served = None if options.in_process else find_measure()
    if served is None and not options.in_process:
        out.note("no service to measure behind is installed (headrace[cluster,embedded]): speeds are those in process")
    if options.data is None:
        out.note("no --data: candidates are quantized only, and judged by sentences of Python's documentation")
    subject = load_subject(find_source(model), options.task)  # type: ignore[arg-type]  # the command checked it
    examples = sample_texts() if options.data is None else read_examples(options.data)
    return ModelStudy(
        subject,
        split(in_the_models_order(examples, subject)),
        folder,
        threads=options.threads or len(os.sched_getaffinity(0)),
        trainable=options.data is not None,
        served=served,
        trace=() if options.trace is None else read_trace(options.trace),
    )


def _status(front: Front, output: Path) -> int:
    from headrace_workers.compression.search.study_search import explain_miss

    again = f"run the same again to go on; what was found lies in {output}"
    if front.ended == "interrupted":
        raise InterruptError(f"interrupted; {_told(front)}", hint=again)
    missed = explain_miss(front)
    if missed is None:
        return Exit.DONE
    if front.ended == "budget":
        raise CommandError(f"the budget ended first: {missed}", code="budget", hint=again, status=Exit.TIMED_OUT)
    raise missed


def _told(front: Front) -> str:
    return f"the best so far is {front.entry(front.chosen).name!r}" if front.chosen else "nothing was measured yet"


# -- for people and programs ------------------------------------------------------------------------------------


def _fields(front: Front, output: Path, report: Path) -> dict[str, Any]:
    chosen = front.entry(front.chosen) if front.chosen else None
    return {
        "met": front.met,
        "ended": front.ended,
        "target": front.target,
        "shortfalls": front.shortfalls,
        "artifact": None if chosen is None else str(output / chosen.artifact),
        "chosen": None if chosen is None else chosen.name,
        "front": [_row(entry) for entry in front.entries if entry.on_front],
        "report": str(report),
    }


def _row(entry: Entry) -> dict[str, Any]:
    served = None if entry.served is None else entry.served.model_dump(mode="json")
    figures = {name: round(value, 5) for name, value in entry.asked.items()}
    return {"name": entry.name, "fidelity": entry.fidelity, **figures, "served": served, "artifact": entry.artifact}


def _lines(front: Front, output: Path, report: Path) -> list[Any]:
    names = list(dict.fromkeys(name for entry in front.entries for name in entry.asked))
    table = Table("candidate", "tried with", *names, title=f"front for {front.target}")
    for entry in front.entries:
        if entry.on_front:
            figures = [f"{entry.asked[name]:.4g}" if name in entry.asked else "–" for name in names]
            table.add_row(entry.name, f"{entry.fidelity:.0%}", *figures)
    lines: list[Any] = [table, *(f"could not be made: {one.name}: {one.reason}" for one in front.failed)]
    if front.chosen:
        lines.append(f"chosen: {front.entry(front.chosen).name}, in {output / front.entry(front.chosen).artifact}")
    return [*lines, f"report: {report}"]


def _decided(decision: Decision, front: Front) -> Table:
    table = Table("candidate", "speed there", "speed here", title=f"on {decision.node.processor}")
    for entry in front.entries:
        table.add_row(entry.name, f"{entry.asked['speed']:.3g}", f"{decision.speeds[entry.key]:.3g}")
    return table


@contextmanager
def _progress(*, as_json: bool) -> Iterator[Callable[[str, float], None]]:
    """A line that changes on a terminal; elsewhere a line for each candidate; nothing for programs."""
    if as_json:
        yield lambda _what, _share: None
    elif sys.stderr.isatty():
        with Console(stderr=True).status("") as spinner:
            yield lambda what, share: spinner.update(f"{share:4.0%} of the budget  {what}")
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def __call__(self, what: str, share: float) -> None:
        name = what.partition(":")[0]
        if name != self._said:
            print(f"… {share:.0%} {name}", file=sys.stderr, flush=True)
        self._said = name
