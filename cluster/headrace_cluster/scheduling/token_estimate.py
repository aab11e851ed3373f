"""How many tokens a payload will be, guessed from its bytes before anybody tokenizes it."""

from __future__ import annotations

__all__ = ["TokenEstimate"]

_FIRST_RATIO = 0.3
_WEIGHT = 0.02


class TokenEstimate:
    """Tokens per byte of one model's payloads, learned from what replicas report.

    An exponentially weighted mean of both sums, so that long texts weigh as much as they cost. Before the
    first report it assumes 0.3 tokens a byte, which is right for English within a fifth.
    """

    def __init__(self) -> None:
        self._tokens = _FIRST_RATIO
        self._bytes = 1.0

    @property
    def tokens_per_byte(self) -> float:
        """The present estimate."""
        return self._tokens / self._bytes

    def tokens(self, size_bytes: int) -> int:
        """The guess for a payload of that size; at least 1."""
        return int(size_bytes * self._tokens / self._bytes + 0.5) or 1

    def learn(self, size_bytes: int, tokens: int) -> None:
        """One finished batch: its payload bytes, and the tokens they turned out to be."""
        if size_bytes <= 0 or tokens <= 0:
            return
        self._bytes += _WEIGHT * (size_bytes - self._bytes)
        self._tokens += _WEIGHT * (tokens - self._tokens)
