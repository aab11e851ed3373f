"""The texts of the demo and the benchmarks: real, of mixed lengths, and the same for everybody."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from headrace.errors import HeadraceError
from headrace_cluster.bench.e2e import _lines, padding_share
from headrace_cluster.bench.models import packaged_encoder
from headrace_cluster.corpus import heavy_tailed_texts, reference_texts


def lengths(texts: Sequence[str]) -> list[int]:
    """In tokens of all-MiniLM-L6-v2."""
    tokenizer = Tokenizer.from_file(str(packaged_encoder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def words(texts: Sequence[str]) -> list[int]:
    """A cheaper measure."""
    return [len(text.split()) for text in texts]


def test_heavy_tailed_lengths_are_as_promised() -> None:
    """Median about 25 tokens, p95 about 120, at most 256."""
    found = sorted(lengths(heavy_tailed_texts(1_000, lengths)))
    assert 22 <= statistics.median(found) <= 28
    assert 105 <= found[950] <= 135
    assert found[-1] <= 256


def test_texts_are_the_same_for_everybody() -> None:
    """For one seed; for another they are others."""
    assert heavy_tailed_texts(20, words) == heavy_tailed_texts(20, words)
    assert reference_texts(20) == reference_texts(20) != reference_texts(20, seed=8)


def test_reference_texts_are_distinct_and_enough() -> None:
    """For the demo's largest number; asking for more than there are is told."""
    texts = reference_texts(3_000)
    assert len(set(texts)) == 3_000
    assert min(map(len, texts)) >= 25
    with pytest.raises(ValueError, match="there are"):
        reference_texts(1_000_000)


def test_padding_share() -> None:
    """What batches in the order of arrival would compute beyond the texts themselves."""
    assert padding_share([10] * 64) == 0
    assert padding_share([1, 99] * 16) == 1 - 1600 / 3168
    assert padding_share([1] * 32 + [99]) == 0


def test_a_file_of_texts(tmp_path: Path) -> None:
    """Blank lines are no texts; a file without any is told, and so is one that is no text."""
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n  \ntwo words\n", "utf-8")
    assert _lines(file) == ["one", "two words"]
    file.write_text("\n \n")
    with pytest.raises(HeadraceError, match=r"texts\.txt holds no text"):
        _lines(file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(HeadraceError, match=r"byte 3 is not UTF-8"):
        _lines(file)
