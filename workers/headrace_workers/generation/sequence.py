"""One sequence of tokens on its way: what the scheduler plans with, and nothing it does not need."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Any

__all__ = ["Sequence"]


class Sequence:
    """A prompt and what was generated behind it.

    Args:
        prompt: token ids, at least one.
        max_new_tokens: how many may follow it, those in `generated` included.
        generated: what another replica generated before.
        key: whatever its owner finds it again by.
    """

    __slots__ = ("cached_tokens", "computed", "generated", "key", "max_new_tokens", "pages", "preemptions", "prompt")

    def __init__(
        self, prompt: Tokens[int], *, max_new_tokens: int, generated: Tokens[int] = (), key: Any = None
    ) -> None:
        self.prompt = list(prompt)
        self.max_new_tokens = max_new_tokens
        self.generated = list(generated)
        self.key = key
        self.computed = 0
        """How many of its tokens have keys and values in `pages`."""
        self.pages: list[int] = []
        self.cached_tokens = 0
        """How many of its tokens it found computed when it was first admitted."""
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def full(self) -> bool:
        """Whether nothing more may follow."""
        return len(self.generated) >= self.max_new_tokens

    @property
    def left(self) -> int:
        """Rows to compute before its next token can be drawn."""
        return len(self) - self.computed

    def tokens(self, start: int, end: int) -> list[int]:
        """Its tokens from `start` to `end`, prompt and generated as one."""
        prompt = len(self.prompt)
        if start >= prompt:
            return self.generated[start - prompt : end - prompt]
        return (self.prompt[start:end] + self.generated)[: end - start] if end > prompt else self.prompt[start:end]
