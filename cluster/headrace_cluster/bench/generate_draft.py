"""`headrace bench generate`, the draft's part: one job after the other, with a smaller model's guesses and without.

Guessing is for a sequence that runs alone: in company its rows fill a step anyway. The draft is one of our own making
(`headrace compress`), so there is none by default; whether its guesses pay is what the engine itself measures, and a
draft whose guesses do not is to cost nothing.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_engine import engine_contestant, load_engine
from headrace_cluster.bench.generate_plan import GeneratePlan, GenerateReport, Say, Subject
from headrace_cluster.bench.generate_workload import mixed_workload

__all__ = ["measure_draft"]

_WITH: Final = "with"
_WITHOUT: Final = "without"
_WARM_TOKENS: Final = 64
"""New tokens before the first pair: enough for the policy to have measured both ways."""


def measure_draft(subject: Subject, plan: GeneratePlan, report: GenerateReport, say: Say) -> None:
    """Fill in what the plan's draft gains, and how often it is right. Without one there is nothing to measure.

    Args:
        subject: the model.
        plan: how much.
        report: is filled in.
        say: is told what is being done.
    """
    if not plan.draft:
        return
    prompts = mixed_workload(subject.tokenizer, plan.draft_jobs * plan.rounds, number=1).prompts
    with engine_contestant() as engines:
        for name, draft in ((_WITH, plan.draft), (_WITHOUT, "")):
            load_engine(engines, name, subject, plan, slots=1, draft=draft)
        _generated(engines, _WITH, prompts[0], _WARM_TOKENS)
        pairs = []
        for number, prompt in enumerate(prompts):
            say(f"prompt {number + 1} of {len(prompts)}: with a draft, and without")
            drafted, plain = (_generated(engines, name, prompt, plan.single_tokens) for name in (_WITH, _WITHOUT))
            if drafted["texts"] != plain["texts"]:
                report.draft_changed += 1
            pairs.append((drafted, plain))
    report.draft_speedup = median(plain["seconds"] / drafted["seconds"] for drafted, plain in pairs)
    report.draft_guessed = sum(drafted["guessed"] for drafted, _ in pairs)
    if report.draft_guessed:
        report.draft_right = sum(drafted["right"] for drafted, _ in pairs) / report.draft_guessed
    report.draft_used = report.draft_guessed / sum(drafted["tokens"] for drafted, _ in pairs)


def _generated(engines: Contestant, name: str, prompt: str, new_tokens: int) -> dict[str, Any]:
    return engines.ask("generate", name=name, prompts=[prompt], new_tokens=[new_tokens])
