"""The engine of chaos replicas that generate: words that follow from the job's id, and in their midst its wish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from chaos.engine import ChaosEngine
from chaos.history import History
from chaos.workload import Wish, wish_of, words_of
from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError, Prepared

__all__ = ["ChaosDecoder"]

_CANCELLED_AFTER: Final = 1000
"""How many steps a job lasts that wishes to be cancelled, or has a deadline, if nobody ends it."""


class _Wanted(NamedTuple):
    job: str
    words: Sequence[str]
    streams: bool


class _Generation:
    def __init__(self, wanted: _Wanted, said: int) -> None:
        self.wanted = wanted
        self.said = said
        self.waits = _CANCELLED_AFTER if wish_of(wanted.job) in (Wish.CANCEL, Wish.DEADLINE) else 0
        self.reason = "length"
        self.error: ItemError | None = None

    @property
    def ended(self) -> bool:
        return self.error is not None or self.said == len(self.wanted.words)

    @property
    def tokens(self) -> int:
        return 1 + self.said

    def output(self) -> dict[str, Any]:
        text = "".join(self.wanted.words[: self.said])
        usage = {"prompt_tokens": 1, "completion_tokens": self.said, "total_tokens": self.tokens}
        return {"choices": [{"index": 0, "text": text, "finish_reason": self.reason}], "usage": usage}


class _Event(NamedTuple):
    generation: _Generation
    chunk: dict[str, Any] | None
    ended: bool


class ChaosDecoder:
    """Says a word a step of each of its jobs, and grants a job its wish at its last word.

    Args:
        history: where it says what it starts.
        engine: grants the wishes that are not about words.
        words: of a job at most.
        slots: jobs of a step.
        step_s: what a step takes at least.
    """

    def __init__(self, history: History, engine: ChaosEngine, *, words: int, slots: int, step_s: float) -> None:
        self.info = engine.info
        self._history = history
        self._words = words
        self._slots = slots
        self._step_s = step_s
        self._running: list[_Generation] = []

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """What wishes to be refused is not started."""
        return [self._prepared(str(job), params) for job, params in requests]

    def _prepared(self, job: str, params: Mapping[str, Any]) -> Prepared | ItemError:
        if wish_of(job) is Wish.REFUSE:
            return ItemError(FailureCode.INVALID_INPUT, "as asked")
        return Prepared(1, _Wanted(job, words_of(job, self._words), params.get("stream", False)))

    @property
    def busy(self) -> bool:
        """Whether any job runs."""
        return bool(self._running)

    def start(self, item: Prepared, *, job_id: str, delivered: Sequence[Mapping[str, Any]] = ()) -> _Generation:
        """Go on behind what was delivered."""
        self._history.note("start", jobs=[job_id])
        generation = _Generation(item.data, sum(len(chunk["tokens"]) for chunk in delivered))
        if not generation.ended:
            self._running.append(generation)
        return generation

    def step(self) -> list[_Event]:
        """A word each."""
        time.sleep(self._step_s)
        return [event for generation in self._running[: self._slots] if (event := self._advance(generation))]

    def _advance(self, generation: _Generation) -> _Event | None:
        job, words, _ = generation.wanted
        at = generation.said
        if at == len(words) - 1 and self._grants(generation, wish_of(job)):
            return None
        generation.said += 1
        if generation.ended:
            self._running.remove(generation)
        chunk = {"i": 0, "n": at, "tokens": [at], "text": words[at]}
        return _Event(generation, chunk, generation.ended)

    def _grants(self, generation: _Generation, wish: Wish) -> bool:
        """Do what the job wishes before its last word; whether that word has to wait."""
        if wish is Wish.RAISE:
            raise RuntimeError("as asked")
        if wish is Wish.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        generation.waits -= 1
        return generation.waits > 0

    def cancel(self, generation: _Generation, reason: str = "cancelled") -> None:
        """Let go of a job."""
        if generation in self._running:
            self._running.remove(generation)
            generation.reason = reason

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Nobody asks for it."""
        raise NotImplementedError

    def example(self) -> tuple[Any, dict[str, Any]]:
        """A job that asks for nothing."""
        return "example-0.plain", {}
