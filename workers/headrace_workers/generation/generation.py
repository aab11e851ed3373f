"""A job that is being answered: its choices, what of them was delivered, and the output they end up as.

No model and no clock in here: tokens come in one by one, whoever drew them, and text comes out. Fed the tokens that
another replica delivered, a generation stands where that replica stood, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import GenerationParams
from headrace_workers.generation.sampling import Draw, Drawn
from headrace_workers.generation.sequence import Sequence as TokenSequence
from headrace_workers.generation.text import TextAssembler

__all__ = ["Choice", "FinishReason", "Generation", "GenerationRequest"]

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated job: what `DecoderEngine.start` begins with."""

    prompt: Sequence[int]
    params: GenerationParams
    max_new_tokens: int
    constraint: Any = None
    """Its compiled `response_format`, of which every choice has a copy of its own."""

    @property
    def streams(self) -> bool:
        """Whether its tokens are wanted as they come."""
        return self.params.stream

    @property
    def n(self) -> int:
        """How many answers are wanted."""
        return self.params.n


class Choice:
    """One of the answers to a job.

    Args:
        generation: the job's.
        index: which of its answers.
        draw: how its tokens are drawn.
        text: what its tokens say.
        end_tokens: which of them end it.
    """

    __slots__ = (
        "_end_tokens",
        "draw",
        "finish_reason",
        "generation",
        "index",
        "logprobs",
        "pieces",
        "sequence",
        "text",
    )

    def __init__(
        self, generation: Generation, index: int, *, draw: Draw, text: TextAssembler, end_tokens: frozenset[int]
    ) -> None:
        request = generation.request
        self.generation = generation
        self.index = index
        self.draw = draw
        self.text = text
        self.sequence = TokenSequence(request.prompt, max_new_tokens=request.max_new_tokens, key=self)
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []
        self.finish_reason: FinishReason | None = None
        self._end_tokens: frozenset[int] = frozenset() if request.params.ignore_eos else end_tokens

    def take(self, drawn: Drawn) -> dict[str, Any]:
        """Append a token; the chunk that tells of it."""
        before = len(self.sequence.generated)
        piece = self._append(drawn.token)
        chunk: dict[str, Any] = {"i": self.index, "n": before, "tokens": [drawn.token], "text": piece}
        if drawn.logprobs is not None:
            self.logprobs.append(drawn.logprobs)
            chunk["logprobs"] = [drawn.logprobs]
        return chunk

    def resume(self, chunk: Mapping[str, Any]) -> None:
        """Append what another replica delivered.

        Raises:
            ValueError: it does not follow what is here.
        """
        if chunk["n"] != len(self.sequence.generated):
            raise ValueError(f"chunk at token {chunk['n']} of choice {self.index}, which has {len(self.sequence)}")
        for token in chunk["tokens"]:
            self.draw.advance(token)
            self._append(token)
        self.logprobs += chunk.get("logprobs", [])

    def _append(self, token: int) -> str:
        self.sequence.generated.append(token)
        ends = token in self._end_tokens
        piece = "" if ends else self.text.feed(token)
        if ends or self.text.stopped or self.draw.finished:
            self.finish_reason = "stop"
        elif self.sequence.full:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            piece += self.text.finish()
        self.pieces.append(piece)
        return piece

    def give_up(self, reason: FinishReason) -> None:
        """End it before its time."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.pieces.append(self.text.finish())

    def to_output(self) -> dict[str, Any]:
        """As it stands in the terminal entry."""
        output: dict[str, Any] = {
            "index": self.index,
            "text": "".join(self.pieces),
            "finish_reason": self.finish_reason,
        }
        if self.generation.request.params.logprobs:
            output["logprobs"] = self.logprobs
        return output


class Generation:
    """A job that is being answered.

    Args:
        job_id: the producer's name for it.
        request: what it asks for.
    """

    __slots__ = ("choices", "error", "job_id", "request")

    def __init__(self, job_id: str, request: GenerationRequest) -> None:
        self.job_id = job_id
        self.request = request
        self.choices: list[Choice] = []
        self.error: ItemError | None = None

    def resume(self, delivered: Sequence[Mapping[str, Any]]) -> None:
        """Append the chunks that other replicas delivered, in their order.

        Raises:
            ItemError: they are no chunks of this job.
        """
        try:
            for chunk in delivered:
                self.choices[chunk["i"]].resume(chunk)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ItemError(
                FailureCode.ENGINE_FAILED, f"what was delivered before cannot be gone on with: {error!r}"
            ) from None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.error is not None or all(choice.finish_reason is not None for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, of all choices."""
        return sum(len(choice.sequence.generated) for choice in self.choices)

    @property
    def tokens(self) -> int:
        """How much work it was: the prompt's tokens and the generated ones."""
        return len(self.request.prompt) + self.completion_tokens

    def give_up(self, reason: FinishReason) -> None:
        """End what has not ended."""
        for choice in self.choices:
            choice.give_up(reason)

    def fail(self, error: ItemError) -> None:
        """It cannot be answered."""
        self.error = error
        self.give_up("error")

    def output(self) -> dict[str, Any]:
        """The terminal output, timings excepted: choices and usage. Of an answer that ends early, what there is."""
        prompt, completion = len(self.request.prompt), self.completion_tokens
        return {
            "choices": [choice.to_output() for choice in self.choices],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "cached_tokens": sum(choice.sequence.cached_tokens for choice in self.choices),
            },
        }
