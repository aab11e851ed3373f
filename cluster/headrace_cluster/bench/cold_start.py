"""`headrace bench cold-start`: from the start of a process until its engine has answered, phase by phase.

Each round is a fresh process, without Ray: what a replica costs when the worker process that Ray keeps ready is not
counted. Files are warm in the kernel's cache after the first round, which is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final

from headrace_cluster.bench.models import packaged_encoder
from headrace_workers.telemetry.cold_start import PHASES

__all__ = ["run_cold_start"]

Say = Callable[[str], None]

_MODULE: Final = "headrace_cluster.bench.cold_start_process"


def run_cold_start(say: Say, *, model: str | None = None, rounds: int = 5) -> dict[str, Any]:
    """Median seconds of each phase.

    Args:
        say: is told of each round.
        model: a folder, an artifact's URL or a hub id; None: the packaged all-MiniLM-L6-v2, quantized as it is loaded.
        rounds: how many processes; one more goes before them.

    Returns:
        `<phase>_s` for each phase; `worker_import_s`, the part of `import_s` that is our own modules and torch, and
        `libraries_import_s`, the rest, which is transformers; `ready_after_import_s`, all that follows; and `total_s`.

    Raises:
        CalledProcessError: the model cannot be loaded.
    """
    found: list[Mapping[str, float]] = []
    for number in range(rounds + 1):
        taken = _one(model or str(packaged_encoder()))
        say(f"round {number}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in taken.items()))
        found.append(taken)
    report = {f"{name}_s": median(taken.get(name, 0.0) for taken in found[1:]) for name in (*PHASES, "worker_import")}
    report["libraries_import_s"] = report["import_s"] - report["worker_import_s"]
    report["ready_after_import_s"] = sum(report[f"{name}_s"] for name in ("fetch", "load", "pack", "first_answer"))
    report["total_s"] = report["process_s"] + report["import_s"] + report["ready_after_import_s"]
    return {name: round(seconds, 3) for name, seconds in report.items()} | {"rounds": rounds}


def _one(model: str) -> dict[str, float]:
    """The seconds of one start."""
    began_s = time.time()
    ran = subprocess.run(
        [sys.executable, "-m", _MODULE, repr(began_s), model], check=True, capture_output=True, text=True
    )
    taken: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return taken
