"""Tokens to text, as they come: never half a character, and never what may turn out to begin a stop string.

Each token is spelled once, as bytes, and the bytes of an answer are decoded as one stream of UTF-8. What a token spells
is what it adds behind other text, so the answer joins the prompt without a seam: of a SentencePiece tokenizer's first
word it keeps the space before it, which `Tokenizer.decode`, given the answer alone, drops; in all else the text is that
of `decode`. (tokenizers' `DecodeStream` decodes a window of tokens twice for each new one, and raises where a run of
byte tokens turns invalid.)
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextAssembler", "TokenSpelling"]

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class TokenSpelling:
    """What each token of a vocabulary adds to a text, in bytes. Used from one thread; remembers what it was asked.

    Special tokens add nothing, and neither do numbers beyond the vocabulary, which padded models can draw.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        kinds = _kinds(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else set()
        self._tokenizer = tokenizer
        self._special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._byte_of = _byte_level() if "ByteLevel" in kinds else {}
        self._byte_fallback = "ByteFallback" in kinds
        self._anchor = _anchor(tokenizer)
        self._before = tokenizer.decode(self._anchor)
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """The bytes that a token adds behind other text."""
        spelled = self._known.get(token)
        if spelled is None:
            spelled = self._known[token] = b"" if token in self._special else self.literally(token)
        return spelled

    def literally(self, token: int) -> bytes:
        """The same, and of a special token its name."""
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if token in self._special:
            return bytes(name.encode())
        if self._byte_of:
            return _of_byte_level(name, self._byte_of)
        if self._byte_fallback and (byte := _fallback_byte(name)) is not None:
            return byte
        text: str = self._tokenizer.decode([*self._anchor, token])
        return text.removeprefix(self._before).encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The types of a decoder and of those in it."""
    return {decoder["type"]}.union(*(_kinds(inner) for inner in decoder.get("decoders", [])))


def _byte_level() -> dict[str, int]:
    """The byte that each character stands for in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


def _of_byte_level(name: str, byte_of: dict[str, int]) -> bytes:
    """A token with a character that stands for no byte, such as an added one with a space in it, is text."""
    try:
        return bytes(byte_of[character] for character in name)
    except KeyError:
        return name.encode()


def _fallback_byte(name: str) -> bytes | None:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            return None
    return None


def _anchor(tokenizer: Tokenizer) -> list[int]:
    """A token to stand before others: many decoders treat the first one as the beginning of a text."""
    for letter in _LETTERS:
        if (token := tokenizer.token_to_id(letter)) is not None:
            return [token]
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    plain = (id for id in range(tokenizer.get_vocab_size()) if id not in special and tokenizer.decode([id]).strip())
    return [next(plain, 0)]


class TextAssembler:
    """Makes the text of one answer out of its tokens. Fed the same tokens it is in the same state.

    Args:
        spelling: of the model's vocabulary.
        stop: strings that the text ends before: before the first that is complete, read character by character,
            and of two that are complete at once before the longer.
    """

    def __init__(self, spelling: TokenSpelling, stop: Sequence[str] = ()) -> None:
        self._spelling = spelling
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [_StopString(string) for string in stop]
        self._held = ""
        self.stopped = False
        """Whether a stop string came; nothing comes after it."""

    def feed(self, token: int) -> str:
        """Append a token; the text that is certain now and was not before."""
        return self._append(self._characters.decode(self._spelling(token)))

    def finish(self) -> str:
        """No token follows: the text that was held back; a character of which a part is missing is U+FFFD."""
        rest = self._append(self._characters.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _append(self, text: str) -> str:
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        for at in range(len(self._held), len(text)):
            if complete := self._complete(text[at]):
                self.stopped, self._held = True, ""
                return text[: at + 1 - complete]
        certain = len(text) - max(stop.matched for stop in self._stops)
        self._held = text[certain:]
        return text[:certain]

    def _complete(self, character: str) -> int:
        """Show a character to all stop strings; the length of the longest that it completes, or 0."""
        return max([stop.length if stop.completed_by(character) else 0 for stop in self._stops])


class _StopString:
    """How much of a string the text ends with, character by character (Knuth, Morris and Pratt, 1977)."""

    __slots__ = ("_fallback", "_string", "length", "matched")

    def __init__(self, string: str) -> None:
        self._string = string
        self.length = len(string)
        self.matched = 0
        self._fallback = [0] * len(string)
        for at in range(1, len(string)):
            self._fallback[at] = self._longer(self._fallback[at - 1], string[at])

    def completed_by(self, character: str) -> bool:
        """Read one more character. Not called again after it said yes."""
        self.matched = self._longer(self.matched, character)
        return self.matched == self.length

    def _longer(self, matched: int, character: str) -> int:
        while matched and self._string[matched] != character:
            matched = self._fallback[matched - 1]
        return matched + (self._string[matched] == character)
