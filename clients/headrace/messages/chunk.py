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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace.codec import pack, unpack
from headrace.errors import DecodeError

__all__ = ["Chunk", "pack_chunk", "partial_output", "unpack_chunk"]

_WHAT_IT_IS: Final = "a chunk is a map of 'i', 'n', 'tokens', 'text' and optionally 'logprobs', one for each token"


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

    @property
    def body(self) -> dict[str, Any]:
        """The map that stands for it on the wire."""
        body: dict[str, Any] = {"i": self.index, "n": self.before, "tokens": self.tokens, "text": self.text}
        return body if self.logprobs is None else body | {"logprobs": self.logprobs}


def pack_chunk(
    index: int, *, before: int, tokens: Sequence[int], text: str, logprobs: Sequence[Any] | None = None
) -> bytes:
    """The body of a `chunk` entry."""
    return pack(Chunk(index, text, tokens, logprobs, before).body)


def unpack_chunk(body: bytes) -> Chunk:
    """Read the body of a `chunk` entry; keys of newer services are passed over.

    Raises:
        DecodeError: it is none.
    """
    try:
        read = unpack(body)
        index, before, tokens, text, logprobs = read["i"], read["n"], read["tokens"], read["text"], read.get("logprobs")
    except (KeyError, TypeError):
        raise DecodeError(_WHAT_IT_IS) from None
    if not (_is_number(index) and _is_number(before) and type(text) is str and _are_tokens(tokens, logprobs)):
        raise DecodeError(_WHAT_IT_IS)
    return Chunk(index, text, tokens, logprobs, before)


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_tokens(tokens: Any, logprobs: Any) -> bool:
    return type(tokens) is list and all(map(_is_number, tokens)) and (logprobs is None or _are_of(tokens, logprobs))


def _are_of(tokens: Sequence[int], logprobs: Any) -> bool:
    return (
        isinstance(logprobs, list) and len(logprobs) == len(tokens) and all(isinstance(one, dict) for one in logprobs)
    )


def partial_output(chunks: Iterable[Chunk], reason: str, *, prompt_tokens: int | None = None) -> dict[str, Any] | None:
    """What chunks come to, as the output of a job that goes no further; None if there are none.

    Args:
        chunks: all that were delivered of the job, in order.
        reason: the `finish_reason` of its choices.
        prompt_tokens: how long its prompt is; None where nobody knows, and `usage` says nothing of it.
    """
    choices: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        choices.setdefault(chunk.index, []).append(chunk)
    if not choices:
        return None
    tokens = sum(len(chunk.tokens) for delivered in choices.values() for chunk in delivered)
    usage = {"completion_tokens": tokens}
    if prompt_tokens is not None:
        usage |= {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + tokens, "cached_tokens": 0}
    return {"choices": [_choice(index, choices[index], reason) for index in sorted(choices)], "usage": usage}


def _choice(index: int, chunks: Sequence[Chunk], reason: str) -> dict[str, Any]:
    choice = {"index": index, "text": "".join(chunk.text for chunk in chunks), "finish_reason": reason}
    logprobs = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    return choice | {"logprobs": logprobs} if logprobs else choice
