"""A chunk: what was generated of a job since the last one, on its way to whoever watches.

The body of an inbox entry of status ``chunk``, a msgpack map:

============  ==========================================================================================
``i``         which of the job's choices
``n``         how many tokens of that choice were delivered before
``tokens``    the ids of those delivered here
``text``      what became certain of the text; it may lag behind the tokens
``logprobs``  optionally, one entry a token: ``token``, ``logprob``, ``bytes``, ``top_logprobs``
============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.codec import pack, unpack
from headrace.errors import DecodeError

__all__ = ["Chunk", "pack_chunk", "unpack_chunk"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one choice, and the text that became certain with them."""

    index: int
    """Which of the job's choices."""
    text: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[Mapping[str, Any]] | None = None
    """One for each token, if the job asked for them."""
    before: int = 0
    """How many tokens of the choice came before."""
    cursor: str = ""
    """`client.stream(..., after=cursor)` goes on behind this chunk."""


def pack_chunk(
    index: int, *, before: int, tokens: Sequence[int], text: str, logprobs: Sequence[Any] | None = None
) -> bytes:
    """The body of a `chunk` entry."""
    body: dict[str, Any] = {"i": index, "n": before, "tokens": tokens, "text": text}
    return pack(body if logprobs is None else body | {"logprobs": logprobs})


def unpack_chunk(body: bytes) -> Chunk:
    """Read the body of a `chunk` entry; keys of newer services are passed over.

    Raises:
        DecodeError: it is none.
    """
    match unpack(body):
        case {"i": int(index), "n": int(before), "tokens": [*tokens], "text": str(text), **others}:
            logprobs: Any = others.get("logprobs")
            if min(index, before, 0) == 0 and _are_tokens(tokens) and _are_of(tokens, logprobs):
                return Chunk(index, text, tokens, logprobs, before)
    raise DecodeError("a chunk is a map of 'i', 'n', 'tokens', 'text' and optionally 'logprobs', one for each token")


def _are_tokens(tokens: Sequence[Any]) -> bool:
    return all(type(token) is int and token >= 0 for token in tokens)


def _are_of(tokens: Sequence[int], logprobs: Any) -> bool:
    return logprobs is None or (
        isinstance(logprobs, list) and len(logprobs) == len(tokens) and all(isinstance(one, dict) for one in logprobs)
    )
