"""`headrace bench kernels`: the int8 linear layer against fp32, for every shape of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace_cluster.bench.models import packaged_encoder

__all__ = ["run_kernels"]


def run_kernels(say: Callable[[str], None], *, model: str | None = None, quick: bool = False) -> dict[str, Any]:
    """The report of `headrace_workers.kernels.benchmark`, on one core, as a replica of one core has it."""
    from headrace_workers.kernels.benchmark import ROWS, bench_kernels, shapes_of
    from headrace_workers.models.loading import load_model
    from headrace_workers.models.source import find_source

    say("loading the model")
    source = find_source(model or str(packaged_encoder()))
    shapes = shapes_of(load_model(source, source.task(None)).module)
    say("measuring")
    return bench_kernels(shapes, rows=ROWS[::3] if quick else ROWS)
