"""Real English text that is always at hand: the language reference that ships with Python.

The demo and the benchmarks run on it, so that they need no download and everybody's figures are of one text.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

__all__ = ["heavy_tailed_texts", "reference_texts"]

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"*])")
_SHORTEST: Final = 25
_MEDIAN_TOKENS: Final = 25
_P95_TOKENS: Final = 120
_MAX_TOKENS: Final = 256
_Z95: Final = 1.6449


@lru_cache(maxsize=1)
def _paragraphs() -> tuple[str, ...]:
    """Every paragraph once, in the order of the topics' names, its lines joined."""
    topics: dict[str, str] = pydoc_data.topics.topics
    found: dict[str, None] = {}
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            text = " ".join(block.split())
            if len(text) >= _SHORTEST:
                found.setdefault(text)
    return tuple(found)


def reference_texts(count: int, *, seed: int = 7) -> list[str]:
    """Distinct sentences and paragraphs of mixed lengths, in an order that the seed fixes.

    Raises:
        ValueError: there are not that many.
    """
    paragraphs = _paragraphs()
    sentences = [part for text in paragraphs for part in _SENTENCE_END.split(text) if len(part) >= _SHORTEST]
    distinct = list(dict.fromkeys([*paragraphs, *sentences]))
    if count > len(distinct):
        raise ValueError(f"asked for {count} texts; there are {len(distinct)}")
    random.Random(seed).shuffle(distinct)
    return distinct[:count]


def heavy_tailed_texts(count: int, token_lengths: Callable[[Sequence[str]], list[int]], *, seed: int = 7) -> list[str]:
    """Runs of words whose lengths follow what services see: median 25 tokens, p95 120, at most 256.

    The lengths are log-normal, and are met to within a word.

    Args:
        count: how many texts.
        token_lengths: how many tokens each of some texts has, special tokens included.
        seed: fixes lengths and places.
    """
    rng = random.Random(seed)
    words = " ".join(_paragraphs()).split()
    per_word = [max(1, length - 2) for length in token_lengths(words)]
    sigma = math.log(_P95_TOKENS / _MEDIAN_TOKENS) / _Z95
    texts = []
    for _ in range(count):
        wanted = round(rng.lognormvariate(math.log(_MEDIAN_TOKENS), sigma)) - 2
        start = end = rng.randrange(len(words) - _MAX_TOKENS)
        tokens = 0
        while tokens < wanted and tokens + per_word[end] <= _MAX_TOKENS - 2:
            tokens += per_word[end]
            end += 1
        texts.append(" ".join(words[start : max(end, start + 1)]))
    return texts
