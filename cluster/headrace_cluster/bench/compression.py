"""`headrace bench compression`: what compression costs in answers and gains in size and speed, technique by technique.

An encoder in int8 beside other libraries' int8; half of its weights set to zero; a classifier distilled, pruned and
quantized; a language model in 8 and 4 bits beside llama.cpp's formats.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace_cluster.bench.int8_quality import Int8Plan, measure_int8
from headrace_cluster.bench.ladder import LadderPlan, measure_student
from headrace_cluster.bench.language import measure_language
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.bench.sparse import measure_sparse

__all__ = ["PARTS", "run_compression"]

PARTS = ("int8", "sparse", "student", "language")
"""What is measured, each of which can be asked for alone."""


def run_compression(
    say: Callable[[str], None], *, quick: bool = False, peers: Path | None = None, only: str = ""
) -> dict[str, Any]:
    """The report.

    Args:
        say: is told what is being done.
        quick: a short look: less data, fewer steps, rougher figures.
        peers: virtual environments of other libraries; None leaves them out.
        only: one of `PARTS`; empty for all.
    """
    model = packaged_encoder()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = Path(scratch)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "int8": lambda: measure_int8(model, folder, Int8Plan.quick() if quick else Int8Plan(), say, peers=peers),
            "sparse": lambda: measure_sparse(model, folder, say, quick=quick),
            "student": lambda: measure_student(model, folder, LadderPlan.quick() if quick else LadderPlan(), say),
            "language": lambda: measure_language(say, quick=quick),
        }
        report: dict[str, Any] = {}
        for name, measure in parts.items():
            if only in ("", name):
                report |= measure()
    return report
