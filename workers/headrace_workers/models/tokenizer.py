"""Tokenizing: text to token ids, without padding and without a word cut off unless that was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelLoadError
from headrace_workers.models.source import ModelSource

__all__ = ["TextTokenizer", "Tokenized", "load_tokenizer"]

_FILE: Final = "tokenizer.json"
_VOCABULARIES: Final = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""What transformers can make a tokenizer of. Given none of them it makes one all the same, that knows no word."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One text, tokenized, with the special tokens the model wants around it."""

    ids: NDArray[np.int64]
    offsets: list[tuple[int, int]]
    """Characters [from, to) of each token; empty unless asked for."""
    special: list[int]
    """1 for each token that the tokenizer added; empty unless asked for."""


class TextTokenizer:
    """A `tokenizers.Tokenizer`, twice: as it is, and cutting off at the model's limit.

    Both release the GIL while they work, and may be used from any thread.
    """

    def __init__(self, serialized: str, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self.max_tokens = max_tokens
        self._whole, self._cut = Tokenizer.from_str(serialized), Tokenizer.from_str(serialized)
        for tokenizer in (self._whole, self._cut):
            tokenizer.no_padding()
        self._whole.no_truncation()
        self._cut.enable_truncation(max_tokens)

    def __call__(self, texts: list[str], *, offsets: bool = False) -> list[Tokenized]:
        """Tokenize whole texts, however long."""
        encode = self._whole.encode_batch if offsets else self._whole.encode_batch_fast
        return [_tokenized(encoding, offsets=offsets) for encoding in encode(texts)]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, special ones included."""
        return [len(encoding.ids) for encoding in self._whole.encode_batch_fast(list(texts))]

    def cut(self, text: str, *, offsets: bool = False) -> Tokenized:
        """Tokenize a text and keep what the model can take of it."""
        return _tokenized(self._cut.encode(text), offsets=offsets)


def _tokenized(encoding: Any, *, offsets: bool) -> Tokenized:
    ids = np.array(encoding.ids, dtype=np.int64)
    if not offsets:
        return Tokenized(ids, [], [])
    return Tokenized(ids, encoding.offsets, encoding.special_tokens_mask)


def load_tokenizer(source: ModelSource, max_tokens: int) -> TextTokenizer:
    """The model's tokenizer.

    Raises:
        ModelLoadError: it has none that the `tokenizers` library can run.
    """
    path = source.folder / _FILE
    serialized = path.read_text("utf-8") if path.is_file() else _converted(source.folder)
    try:
        return TextTokenizer(serialized, max_tokens)
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(f"{path} is not a tokenizer: {error}") from None


def _converted(folder: Path) -> str:
    """The tokenizer of a model that has only a vocabulary, converted as transformers does it."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ModelLoadError(f"{folder} has no tokenizer: neither {_FILE} nor {', '.join(_VOCABULARIES)}")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        serialized: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever a broken folder makes transformers raise
        raise ModelLoadError(f"{folder} has no {_FILE}, and transformers cannot make one: {error}") from error
    return serialized


def serialized_tokenizer(source: ModelSource) -> bytes:
    """What an artifact stores: the tokenizer as one JSON document, whatever the model came with.

    Raises:
        ModelLoadError: it has none that the `tokenizers` library can run.
    """
    path = source.folder / _FILE
    content = path.read_bytes() if path.is_file() else _converted(source.folder).encode()
    json.loads(content)
    return content
