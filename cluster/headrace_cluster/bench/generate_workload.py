"""What `headrace bench generate` asks for: the same prompts and counts of everybody.

Every time they begin with another number, since whoever keeps the keys and values of prompts that he has seen would not
compute them again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Final

from headrace_cluster.bench.language import held_out_english
from headrace_cluster.corpus import heavy_tailed_texts, reference_texts
from headrace_workers.models.tokenizer import TextTokenizer

__all__ = ["Workload", "mixed_workload", "prefixed_workload", "windows"]

_SEED: Final = 7
_SHORTEST_ANSWER: Final = 8
_LONGEST_ANSWER: Final = 128
_PREFIX_TEXTS: Final = 400
_OWN_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, and how many tokens each is to be answered with."""

    prompts: list[str]
    ids: list[list[int]]
    """The prompts as tokens, for those who take them so."""
    new_tokens: list[int]

    @property
    def tokens(self) -> int:
        """New tokens of all prompts."""
        return sum(self.new_tokens)

    def first(self, count: int, *, longest_answer: int = _LONGEST_ANSWER) -> Workload:
        """A part of it."""
        shorter = [min(longest_answer, tokens) for tokens in self.new_tokens[:count]]
        return Workload(self.prompts[:count], self.ids[:count], shorter)


def mixed_workload(tokenizer: TextTokenizer, count: int, *, number: int) -> Workload:
    """Prompts of a median of 25 tokens, 256 at most, each to be answered with 8 to 128; they begin with the number."""
    prompts = heavy_tailed_texts(count, tokenizer.lengths, seed=_SEED)
    rng = random.Random(_SEED)
    new_tokens = [rng.randint(_SHORTEST_ANSWER, _LONGEST_ANSWER) for _ in prompts]
    return _workload(tokenizer, [f"{number}. {prompt}" for prompt in prompts], new_tokens)


def prefixed_workload(
    tokenizer: TextTokenizer, count: int, *, prefix_tokens: int, new_tokens: int, number: int
) -> Workload:
    """Prompts that begin with the number and the same tokens, about so many, each with a few words of its own."""
    texts = reference_texts(count + _PREFIX_TEXTS, seed=_SEED)
    words = " ".join(texts[count:]).split()
    (special,) = tokenizer.lengths([""])
    ends = accumulate(length - special for length in tokenizer.lengths([f" {word}" for word in words]))
    prefix = " ".join(words[: sum(1 for _ in takewhile(lambda end: end <= prefix_tokens, ends))])
    own = [" ".join(text.split()[:_OWN_WORDS]) for text in texts[:count]]
    return _workload(tokenizer, [f"{number}. {prefix}\n\n{text}" for text in own], [new_tokens] * count)


def windows(tokenizer: TextTokenizer, *, tokens: int, window: int) -> list[list[int]]:
    """Runs of held-out English, of so many tokens each and about so many in all."""
    ids = [token for text in tokenizer(list(held_out_english().inputs)) for token in text.ids.tolist()]
    return [ids[start : start + window] for start in range(0, min(tokens, len(ids) - window), window)]


def _workload(tokenizer: TextTokenizer, prompts: Sequence[str], new_tokens: list[int]) -> Workload:
    return Workload(list(prompts), [text.ids.tolist() for text in tokenizer(list(prompts))], new_tokens)
