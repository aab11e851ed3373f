"""What of a job was delivered already: the pure half of a stream.

Chunks go in as they are read, and those that are news come out, once and in order, whatever was read twice; a gap is an
error. Text that no chunk carried is in the terminal entry, so that all that comes out adds up to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.errors import DecodeError, ResultGoneError
from headrace.messages.chunk import Chunk
from headrace.messages.result import Result

__all__ = ["StreamProgress", "entry_id_of"]

_CURSOR: Final = re.compile(r"(?P<entry>\d{1,20}(-\d{1,20})?)(?P<choices>(/\d{1,12}\.\d{1,12}){0,1024})")


def entry_id_of(cursor: str) -> str:
    """The entry id in a cursor of any kind: one of a chunk has behind it what came before."""
    return cursor.partition("/")[0]


@dataclass(slots=True)
class _Choice:
    tokens: int = 0
    characters: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    """How many characters had been delivered with how many tokens, at the end of each chunk."""
    without_tokens: int = -1
    """Behind how many tokens a chunk came that had none."""

    def __post_init__(self) -> None:
        self.ends[self.tokens] = self.characters


class StreamProgress:
    """How many tokens and characters of each choice were delivered.

    Args:
        after: a cursor: an entry id, behind which everything is new, or that of a chunk.

    Raises:
        ValueError: it is no cursor.
    """

    def __init__(self, after: str = "0") -> None:
        found = _CURSOR.fullmatch(after)
        if found is None:
            raise ValueError(f"{after[:80]!r} is no cursor: one is in each chunk, and in each result")
        self.entry_id = found["entry"]
        """Of the last entry that was taken, of whatever kind."""
        places = [choice.split(".") for choice in found["choices"].split("/")[1:]]
        self._choices = [_Choice(int(tokens), int(characters)) for tokens, characters in places]

    @property
    def cursor(self) -> str:
        """Where it stands, for another that goes on from here."""
        return self.entry_id + "".join(f"/{choice.tokens}.{choice.characters}" for choice in self._choices)

    def take(self, entry_id: str, chunk: Chunk) -> Chunk | None:
        """What is news in the chunk of an entry; None if all of it was delivered.

        Raises:
            ResultGoneError: what came before was consumed or trimmed.
            DecodeError: something between the last chunk and this one is missing.
        """
        self.entry_id = entry_id
        choice = self._choice(chunk.index)
        known = choice.tokens - chunk.before
        if known < 0:
            raise self._gap(entry_id, choice, chunk)
        if known >= len(chunk.tokens) and (known or choice.without_tokens == chunk.before):
            return None
        text = chunk.text
        if known:  # written again in other parts, by a server that had lost its last writes
            if (start := choice.ends.get(chunk.before)) is None:
                raise DecodeError(f"the chunk {entry_id} overlaps with what was delivered")
            text = text[choice.characters - start :]
        if not chunk.tokens:
            choice.without_tokens = chunk.before
        choice.tokens += len(chunk.tokens) - known
        choice.characters += len(text)
        choice.ends[choice.tokens] = choice.characters
        logprobs = chunk.logprobs[known:] if chunk.logprobs is not None else None
        return Chunk(chunk.index, text, chunk.tokens[known:], logprobs, chunk.before + known, self.cursor)

    def rest(self, result: Result) -> list[Chunk]:
        """What the terminal entry has of the text that no chunk carried."""
        self.entry_id = result.cursor
        left = [self._rest_of(index, choice) for index, choice in enumerate(_choices_of(result))]
        return [chunk for chunk in left if chunk is not None]

    def _rest_of(self, index: int, output: dict[str, Any]) -> Chunk | None:
        choice, text, logprobs = self._choice(index), str(output.get("text", "")), output.get("logprobs")
        piece, before = text[choice.characters :], choice.tokens
        logprobs = logprobs[before:] if logprobs else None
        if not piece and not logprobs:
            return None
        choice.characters = len(text)
        return Chunk(index, piece, (), logprobs, before, self.cursor)

    def _choice(self, index: int) -> _Choice:
        if index > 1024:
            raise DecodeError(f"a chunk of choice {index}")
        while len(self._choices) <= index:
            self._choices.append(_Choice())
        return self._choices[index]

    @staticmethod
    def _gap(entry_id: str, choice: _Choice, chunk: Chunk) -> Exception:
        if choice.tokens == 0:
            return ResultGoneError("the beginning of the stream was consumed or trimmed, or its retention is over")
        return DecodeError(f"the chunk {entry_id} follows token {chunk.before}; the last was {choice.tokens}")


def _choices_of(result: Result) -> Sequence[dict[str, Any]]:
    match result.output:
        case {"choices": [*choices]} if all(isinstance(choice, dict) for choice in choices):
            return choices
    return ()
