"""`headrace bench generate`: new tokens a second of a language model, beside llama.cpp and transformers.

In process, against the peers; through the whole system, against the engine in process; streamed, against answers in one
piece; with a prefix that all prompts share, against computing it again; and one at a time with a draft's guesses, if
there is a draft. Everybody generates greedily, from the same
tokens, exactly as many as every prompt is to have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace_cluster.bench.generate_draft import measure_draft
from headrace_cluster.bench.generate_peers import measure_peers
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Say, Subject
from headrace_cluster.bench.generate_prefix import measure_prefix
from headrace_cluster.bench.generate_system import measure_system
from headrace_cluster.bench.models import packaged_language_model
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["PARTS", "GeneratePlan", "GenerateReport", "run_generate"]

PARTS: Final = ("peers", "prefix", "draft", "system")
"""What is measured, each of which can be asked for alone."""

_LONGEST: Final = 1 << 20


def run_generate(plan: GeneratePlan, say: Say, *, model: str | None = None, only: str = "") -> GenerateReport:
    """Measure.

    Args:
        plan: how much.
        say: is told what is being done.
        model: a path, or a hub id; None takes SmolLM2-135M-Instruct from its package. llama.cpp takes part if it is a
            GGUF file.
        only: one of `PARTS`; empty for all.

    Raises:
        HeadraceError: the model cannot be loaded.
    """
    path = model or str(packaged_language_model())
    source = find_source(path)
    subject = Subject(path, source, load_tokenizer(source, _LONGEST))
    report = GenerateReport(prompts=plan.prompts, slots=plan.slots)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        parts: dict[str, Callable[[], None]] = {
            "peers": lambda: measure_peers(subject, plan, Path(scratch), report, say),
            "prefix": lambda: measure_prefix(subject, plan, report, say),
            "draft": lambda: measure_draft(subject, plan, report, say),
            "system": lambda: measure_system(subject, plan, report, say),
        }
        for name, measure in parts.items():
            if only in ("", name):
                measure()
    return report
