"""An engine that generates numbered words: the right answers are known, and its bad days are asked for.

The prompt says it. `mill`: the words `mill.0 mill.1 …`, as many as `max_tokens`. `refuse`: an item error at once.
`fail@3`, `raise@3`, `die@3`, `hang@3`: the same when its fourth word is due: an error of its own, an exception of the
whole step, the end of the process, a step that never ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headrace.errors import FailureCode
from headrace_workers.engines.base import EngineInfo, ItemError, Prepared

__all__ = ["FakeDecoder", "words_of"]


def words_of(prompt: str, count: int, *, choice: int = 0) -> str:
    """The right answer."""
    return "".join(_word(prompt, choice, position) for position in range(count))


def _word(prompt: str, choice: int, position: int) -> str:
    return f"{prompt}{choice or ''}.{position} "


class Request(NamedTuple):
    prompt: str
    max_tokens: int
    streams: bool
    n: int


class Generation:
    """One job's words so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.positions = [0] * request.n
        self.reason = ""
        self.error: ItemError | None = None

    @property
    def ended(self) -> bool:
        return bool(self.reason) or min(self.positions) >= self.request.max_tokens

    @property
    def tokens(self) -> int:
        return 1 + sum(self.positions)

    def output(self) -> dict[str, Any]:
        prompt, choices = self.request.prompt, enumerate(self.positions)
        return {
            "choices": [
                {"index": i, "text": words_of(prompt, at, choice=i), "finish_reason": self.reason or "length"}
                for i, at in choices
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": sum(self.positions), "total_tokens": self.tokens},
        }


class Event(NamedTuple):
    generation: Generation
    chunk: dict[str, Any] | None
    ended: bool


class FakeDecoder:
    """Generates a word a step for each of its first `slots` jobs.

    Args:
        slots: jobs of one step.
        step_s: what a step takes.
        pause_at: no job goes beyond so many words until `go_on` is called; None: nothing is waited for.
    """

    def __init__(self, *, slots: int = 8, step_s: float = 0.0, pause_at: int | None = None) -> None:
        self.info = EngineInfo(variant="fake", task="causal_lm", device="cpu", load_s=0.0)
        self.step_s = step_s
        self.pause_at = pause_at
        self.running: list[Generation] = []
        self.started: list[tuple[str, int]] = []
        """Each start: the job's id, and how many words had been delivered."""
        self.most_together = 0
        self._slots = slots
        self._hung = threading.Event()

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        return [self._prepared(str(prompt), params) for prompt, params in requests]

    def _prepared(self, prompt: str, params: Mapping[str, Any]) -> Prepared | ItemError:
        if prompt == "refuse":
            return ItemError(FailureCode.INVALID_INPUT, "as asked")
        wanted = Request(prompt, params.get("max_tokens", 8), params.get("stream", False), params.get("n", 1))
        return Prepared(1, wanted)

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def start(self, item: Prepared, *, job_id: str, delivered: Sequence[Mapping[str, Any]] = ()) -> Generation:
        generation = Generation(item.data)
        for chunk in delivered:
            assert chunk["n"] == generation.positions[chunk["i"]], "a gap or a repeat in what was delivered"
            generation.positions[chunk["i"]] += len(chunk["tokens"])
        self.started.append((job_id, sum(generation.positions)))
        if not generation.ended:
            self.running.append(generation)
        return generation

    def step(self) -> list[Event]:
        time.sleep(self.step_s or 0.0005)
        now = self.running[: self._slots]
        self.most_together = max(self.most_together, len(now))
        return [event for generation in now for event in self._advance(generation)]

    def _advance(self, generation: Generation) -> list[Event]:
        request = generation.request
        events = []
        for choice, position in enumerate(generation.positions):
            if position >= request.max_tokens or (self.pause_at is not None and position >= self.pause_at):
                continue
            if request.prompt.endswith(f"@{position}") and (failed := self._have_a_bad_day(request.prompt)):
                generation.error, generation.reason = failed, "error"
                self.running.remove(generation)
                return [Event(generation, None, True)]
            generation.positions[choice] += 1
            word = _word(request.prompt, choice, position)
            chunk = {"i": choice, "n": position, "tokens": [position], "text": word}
            events.append(Event(generation, chunk, generation.ended))
        if generation.ended:
            self.running.remove(generation)
        return events

    def _have_a_bad_day(self, prompt: str) -> ItemError | None:
        wish = prompt.partition("@")[0]
        if wish == "raise":
            raise RuntimeError("as asked")
        if wish == "die":
            os._exit(1)
        if wish == "hang":
            self._hung.wait()
        return ItemError(FailureCode.ENGINE_FAILED, "as asked", retryable=True) if wish == "fail" else None

    def cancel(self, generation: Generation, reason: str = "cancelled") -> None:
        if generation in self.running:
            self.running.remove(generation)
            generation.reason = reason

    def go_on(self) -> None:
        """Let jobs that paused, or hung, go on."""
        self.pause_at = None
        self._hung.set()

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        return [_completed(Generation(item.data)) for item in items]

    def example(self) -> tuple[Any, dict[str, Any]]:
        return "mill", {"max_tokens": 2}


def _completed(generation: Generation) -> dict[str, Any]:
    generation.positions = [generation.request.max_tokens] * generation.request.n
    return generation.output()
