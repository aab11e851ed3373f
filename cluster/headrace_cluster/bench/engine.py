"""`headrace bench engine`: what one engine does on this node, in every precision, without a queue.

The precisions take turns, batch by batch, so that a slow moment slows them all; beside each one's speed stands how far
its answers are from the first one's. It is how a GPU is compared with its neighbours, and how a pass's size is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.corpus import heavy_tailed_texts
from headrace_workers.engines.base import Prepared
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["EnginePlan", "run_engine"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What to measure.

    Args:
        device: where.
        precisions: which; the first is what the others' answers are compared with.
        texts: how many, of mixed lengths.
        batch_jobs: how many go to the engine together.
        max_tokens_per_pass: what the engine cuts a batch into; None: its own choice for the device.
        rounds: how often each runs over all texts.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    precisions: tuple[str, ...] = ("fp32", "int8")
    texts: int = 2048
    batch_jobs: int = 256
    max_tokens_per_pass: int | None = None
    rounds: int = 3


@dataclass(slots=True)
class _Contestant:
    engine: EncoderEngine
    prepare_s: float = 0.0
    run_s: float = 0.0
    tokens: int = 0
    answers: list[NDArray[np.float32]] = field(default_factory=list)

    def take(self, texts: Sequence[str], *, keep: bool) -> None:
        started = time.perf_counter()
        items = [item for item in self.engine.prepare([(text, {}) for text in texts]) if isinstance(item, Prepared)]
        prepared = time.perf_counter()
        answers = self.engine.run(items)
        self.run_s += time.perf_counter() - prepared
        self.prepare_s += prepared - started
        self.tokens += sum(item.tokens for item in items)
        if keep:
            self.answers += [answer.numpy() for answer in answers]


def run_engine(plan: EnginePlan, say: Say, *, model: str | None = None) -> dict[str, Any]:
    """Measure an embedding model; see `EnginePlan`.

    Returns:
        The plan's figures, and for each precision a row: `texts_per_s` and `tokens_per_s` of computing alone,
        `prepared_texts_per_s` of tokenizing, `speedup`, `cosine_mean` and `cosine_min` against the first.
    """
    name = model or str(packaged_encoder())
    source = find_source(name)
    contestants = {precision: _contestant(name, precision, plan, say) for precision in plan.precisions}
    first = contestants[plan.precisions[0]]
    tokenizer = load_tokenizer(source, first.engine.info.details["max_tokens"])
    texts = heavy_tailed_texts(plan.texts, tokenizer.lengths)
    for warming in (True, False):
        for turn in range(1 if warming else plan.rounds):
            say("warming up" if warming else f"round {turn + 1} of {plan.rounds}")
            for start in range(0, len(texts), plan.batch_jobs):
                for contestant in contestants.values():
                    contestant.take(texts[start : start + plan.batch_jobs], keep=warming)
        if warming:
            _forget_times([*contestants.values()])
    rows = [_row(precision, one, first, plan) for precision, one in contestants.items()]
    return {"device": first.engine.info.details.get("gpu", plan.device), "texts": plan.texts, "precisions": rows}


def _contestant(name: str, precision: str, plan: EnginePlan, say: Say) -> _Contestant:
    say(f"loading {precision}")
    engine = EncoderEngine(
        name,
        precision=precision,  # type: ignore[arg-type]
        overlong="truncate",
        device=plan.device,
        max_tokens_per_pass=plan.max_tokens_per_pass,
    )
    return _Contestant(engine)


def _forget_times(contestants: Sequence[_Contestant]) -> None:
    for one in contestants:
        one.prepare_s = one.run_s = 0.0
        one.tokens = 0


def _row(precision: str, one: _Contestant, first: _Contestant, plan: EnginePlan) -> dict[str, Any]:
    ran = plan.texts * plan.rounds
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(one.answers, first.answers, strict=True)
    ]
    return {
        "precision": precision,
        "texts_per_s": round(ran / one.run_s, 1),
        "tokens_per_s": round(one.tokens / one.run_s),
        "prepared_texts_per_s": round(ran / one.prepare_s, 1),
        "speedup": round(first.run_s / one.run_s, 3),
        "cosine_mean": round(float(np.mean(cosines)), 5),
        "cosine_min": round(min(cosines), 5),
        "packed": one.engine.info.details["packed"],
    }
