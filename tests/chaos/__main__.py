"""Run chaos: `python -m chaos --mode ci|soak --seed N --duration-s S --json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.plan import Fault, describe, make_plan, spread
from chaos.report import line, summary
from chaos.sabotage import SABOTAGES
from chaos.scenario import Outcome, Scenario, run_scenario
from chaos.scenarios import CI, MIXED, SOAK
from headrace_cluster.embedded import find_server

_MODES: Final = {"ci": CI, "soak": SOAK}
_USUAL_S: Final = {"ci": MIXED.faults_s, "soak": 900.0}
"""How long the faults of the mixed scenario last if nothing is said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios of a mode; returns 1 if a promise was broken.

    Raises:
        SystemExit: the arguments are wrong, or nothing would be run.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    scenarios = [scenario for scenario in _MODES[options.mode] if options.only in ("", scenario.name)]
    if not scenarios:
        names = ", ".join(scenario.name for scenario in _MODES[options.mode])
        parser.error(f"--only: {options.mode} has no scenario {options.only!r}; there are {names}")
    faults_s = options.duration_s or _USUAL_S[options.mode]
    if options.plan:
        for scenario in scenarios:
            print(f"{scenario.name}:\n{describe(_plan(scenario, options.seed, _factor(scenario, faults_s)))}")
        return 0
    started_s = time.monotonic()
    outcomes = [_run(scenario, options, _factor(scenario, faults_s)) for scenario in scenarios]
    told = summary(
        outcomes, mode=options.mode, seed=options.seed, server=_server(), duration_s=time.monotonic() - started_s
    )
    print(json.dumps(told, indent=None if options.json else 2))
    return 1 if told["violations"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Break everything, and see what is lost.")
    parser.add_argument("--mode", choices=_MODES, default="ci")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the work")
    parser.add_argument("--duration-s", type=float, default=0.0, help="how long the mixed scenario's faults last")
    parser.add_argument("--only", default="", metavar="SCENARIO", help="run this one alone")
    parser.add_argument("--plan", action="store_true", help="print what would be done when, and do nothing")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="run a build that is broken in this way")
    parser.add_argument(
        "--keep",
        type=Path,
        default=None,
        metavar="DIRECTORY",
        help="keep histories and logs there; those of a run that fails are kept anyway",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone, on one line")
    return parser


def _factor(scenario: Scenario, faults_s: float) -> float:
    """Only the long scenario is stretched; the others say all they have to say in their time."""
    return faults_s / scenario.faults_s if scenario.name in ("mixed", "soak") else 1.0


def _plan(scenario: Scenario, seed: int, factor: float) -> list[Fault]:
    return make_plan(seed, scenario.faults_s * factor, spread(scenario.faults, factor), scenario.targets)


def _run(scenario: Scenario, options: argparse.Namespace, factor: float) -> Outcome:
    directory = options.keep / scenario.name if options.keep else Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    failed = True
    try:
        work = run_scenario(scenario, seed=options.seed, factor=factor, broken=options.sabotage, keep=directory)
        outcome = asyncio.run(work)
        failed = bool(outcome.violations)
    finally:
        if failed or options.keep:  # what failed once may never do so again
            print(f"histories and logs are in {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory)
    if not options.json:
        print(line(outcome), flush=True)
        for violation in outcome.violations:
            print(f"    {violation}", flush=True)
    return outcome


def _server() -> str:
    """What the server program says of itself."""
    said = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:3])


if __name__ == "__main__":
    sys.exit(main())
