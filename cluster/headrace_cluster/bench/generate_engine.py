"""Our engine as a contestant of `headrace bench generate`: in process, without a queue. Run as a module.

Preparing is not timed, since the peers are given tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from headrace_cluster.bench.generate_contestant import Contestant
from headrace_cluster.bench.generate_plan import GeneratePlan, Subject
from headrace_cluster.bench.peers.json_lines import answer_lines
from headrace_workers import node
from headrace_workers.engines.base import Prepared
from headrace_workers.engines.decoder import DecoderEngine, Event
from headrace_workers.generation.loading import load_decoder
from headrace_workers.generation.runner import PAGE_TOKENS, DecoderRunner, Step
from headrace_workers.models.source import find_source

__all__ = ["engine_contestant", "job_params", "load_engine"]

_JUDGED_ROWS: Final = 128
"""Rows of one step of judging: their logits are [rows, vocabulary] in fp32."""


def engine_contestant() -> Contestant:
    """The program, started."""
    return Contestant([sys.executable, "-m", "headrace_cluster.bench.generate_engine"])


def load_engine(
    contestant: Contestant, name: str, subject: Subject, plan: GeneratePlan, *, slots: int | None = None, **more: Any
) -> dict[str, Any]:
    """Have it load the subject as the plan says; what the engine says of itself.

    Args:
        contestant: the program.
        name: of the engine there.
        subject: the model.
        plan: how many slots, unless `slots` are given, and which precision.
        slots: instead of the plan's.
        more: what else `Engines.load` takes.
    """
    return contestant.ask(
        "load",
        name=name,
        model=subject.path,
        threads=subject.threads,
        slots=slots or plan.slots,
        precision=plan.precision,
        **more,
    )


def job_params(new_tokens: int) -> dict[str, Any]:
    """What has a job answered greedily with exactly so many tokens."""
    return {"max_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True}


class Engines:
    """Answers the benchmark: engines by name."""

    def __init__(self) -> None:
        self._engines: dict[str, DecoderEngine] = {}
        self._models: dict[str, tuple[str, str]] = {}

    def load(
        self,
        name: str,
        model: str,
        threads: int,
        slots: int,
        precision: str,
        prefix_cache: bool = True,
        draft: str = "",
    ) -> dict[str, Any]:
        """Load an engine; what it says of itself."""
        node.prepare_process(threads)
        engine = DecoderEngine(
            model,
            precision=precision,  # type: ignore[arg-type]
            slots=slots,
            prefix_cache=prefix_cache,
            draft=draft,
        )
        self._engines[name], self._models[name] = engine, (model, precision)
        _run(engine, ["The mill wheel turns"] * 4, [4] * 4)
        return {key: value for key, value in engine.info.details.items() if isinstance(value, (str, int, float))}

    def generate(self, name: str, prompts: Sequence[str], new_tokens: Sequence[int]) -> dict[str, Any]:
        """Seconds, new tokens, what each answer says, and pages held at most, and what a draft guessed."""
        return _run(self._engines[name], prompts, new_tokens)

    def first_tokens(self, name: str, prompts: Sequence[str], new_tokens: int) -> dict[str, Any]:
        """For each prompt, alone, the milliseconds from its text to its first token."""
        return {"times_ms": [_first_token_ms(self._engines[name], prompt, new_tokens) for prompt in prompts]}

    def losses(self, name: str, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Of every token of the windows but the first, by a runner of the engine's kind."""
        model, precision = self._models[name]
        runner, _ = load_decoder(
            find_source(model),
            precision=precision,  # type: ignore[arg-type]
            variant=None,
            kernels="measured",
            device="cpu",
            max_tokens=None,
        )
        runner.allocate(-(-max(map(len, windows)) // PAGE_TOKENS))
        loss = sum(_loss(runner, window) for window in windows)
        return {"loss": loss, "tokens": sum(len(window) - 1 for window in windows)}


def _started(engine: DecoderEngine, prompts: Sequence[str], new_tokens: Sequence[int]) -> Iterator[Prepared]:
    items = zip(prompts, new_tokens, strict=True)
    for item in engine.prepare([(prompt, job_params(count)) for prompt, count in items]):
        if not isinstance(item, Prepared):
            raise item
        yield item


def _drive(engine: DecoderEngine, items: Sequence[Prepared]) -> Iterator[list[Event]]:
    """The events of every step, from the start of all items to the end of the last."""
    for number, item in enumerate(items):
        engine.start(item, job_id=str(number))
    while engine.busy:
        yield engine.step()


def _run(engine: DecoderEngine, prompts: Sequence[str], new_tokens: Sequence[int]) -> dict[str, Any]:
    items = list(_started(engine, prompts, new_tokens))
    pool, answers, held = engine.pool, {}, 0
    guessed, right = engine.guesses
    started = time.perf_counter()
    for events in _drive(engine, items):
        held = max(held, pool.held)
        answers.update({event.generation.job_id: event.generation for event in events if event.ended})
    seconds = time.perf_counter() - started
    outputs = [answers[str(number)].output() for number in range(len(items))]
    return {
        "seconds": seconds,
        "tokens": sum(output["usage"]["completion_tokens"] for output in outputs),
        "cached_tokens": sum(output["usage"]["cached_tokens"] for output in outputs),
        "texts": [output["choices"][0]["text"] for output in outputs],
        "guessed": engine.guesses[0] - guessed,
        "right": engine.guesses[1] - right,
        "pages_held": held,
        "kv_cache_peak_bytes": held * engine.info.details["kv_cache_bytes"] // pool.pages,
    }


def _first_token_ms(engine: DecoderEngine, prompt: str, new_tokens: int) -> float:
    started = time.perf_counter()
    first = 0.0
    for events in _drive(engine, list(_started(engine, [prompt], [new_tokens]))):
        if events and not first:
            first = time.perf_counter()
    return (first - started) * 1000


def _loss(runner: DecoderRunner, window: Sequence[int]) -> float:
    pages = np.arange(-(-len(window) // PAGE_TOKENS), dtype=np.int32)[None]
    total = 0.0
    for start in range(0, len(window) - 1, _JUDGED_ROWS):
        rows = min(_JUDGED_ROWS, len(window) - start)
        step = Step(
            tokens=np.array(window[start : start + rows], dtype=np.int32),
            starts=np.array([0, rows], dtype=np.int32),
            positions=np.array([start], dtype=np.int32),
            pages=pages[:, : -(-(start + rows) // PAGE_TOKENS)],
            wanted=np.arange(rows, dtype=np.int32),
        )
        targets = torch.tensor(window[start + 1 : start + rows + 1])
        logits = runner.run(step)[: len(targets)]
        total += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
    return total


def main() -> None:
    """Answer lines of stdin until it ends."""
    engines = Engines()
    names = ("load", "generate", "first_tokens", "losses")
    answer_lines({name: getattr(engines, name) for name in names})


if __name__ == "__main__":
    main()
