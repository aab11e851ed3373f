"""`headrace bench generate`, the prefix cache's part: jobs that begin with the same tokens, with it and without."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_engine import engine_contestant, load_engine
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Say, Subject
from headrace_cluster.bench.generate_workload import Workload, prefixed_workload

__all__ = ["measure_prefix"]

_WITH: Final = "with"
_WITHOUT: Final = "without"


def measure_prefix(subject: Subject, plan: GeneratePlan, report: GenerateReport, say: Say) -> None:
    """Fill in what the prefix cache gains where every round has a prefix that was never seen before.

    Args:
        subject: the model.
        plan: how much.
        report: is filled in.
        say: is told what is being done.
    """
    with engine_contestant() as engines:
        for name in (_WITH, _WITHOUT):
            load_engine(engines, name, subject, plan, prefix_cache=name == _WITH)
        pairs = []
        for turn in range(plan.rounds):
            say(f"round {turn + 1} of {plan.rounds}: a shared prefix")
            workload = prefixed_workload(
                subject.tokenizer,
                plan.prefix_jobs,
                prefix_tokens=plan.prefix_tokens,
                new_tokens=plan.prefix_new_tokens,
                number=turn + 1,
            )
            pairs.append((_generated(engines, _WITH, workload), _generated(engines, _WITHOUT, workload)))
    report.prefix_tokens_per_s = median(cached["tokens"] / cached["seconds"] for cached, _ in pairs)
    report.prefix_speedup = median(plain["seconds"] / cached["seconds"] for cached, plain in pairs)
    asked = sum(map(len, workload.ids))
    report.prefix_cached_share = median(cached["cached_tokens"] / asked for cached, _ in pairs)


def _generated(engines: Contestant, name: str, workload: Workload) -> dict[str, Any]:
    return engines.ask("generate", name=name, prompts=workload.prompts, new_tokens=workload.new_tokens)
