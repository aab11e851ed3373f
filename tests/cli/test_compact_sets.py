"""Sets that hold a whole file's lines."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.compact_sets import LineSet, TextSet


@given(st.lists(st.integers(0, 5000)))
def test_line_sets_are_sets(numbers: list[int]) -> None:
    lines = LineSet()
    for number in numbers:
        lines.add(number)
    assert {n for n in range(5001) if n in lines} == set(numbers)
    assert len(lines) == len(set(numbers))


@given(st.lists(st.text(max_size=3)))
def test_text_sets_are_sets(texts: list[str]) -> None:
    known, kept = set[str](), TextSet()
    for text in texts:
        assert kept.add(text) is (text not in known)
        known.add(text)
    assert len(kept) == len(known)


def test_text_sets_stay_small_and_right_when_they_grow() -> None:
    texts = TextSet()
    assert all(texts.add(f"text {n}") for n in range(20_000))
    assert not any(texts.add(f"text {n}") for n in range(20_000))
    assert sys.getsizeof(texts._slots) <= 24 * 20_000


def test_line_sets_take_a_bit_a_line() -> None:
    lines = LineSet()
    for number in range(200_000):
        lines.add(number)
    assert sys.getsizeof(lines._bits) < 200_000 / 8 * 1.3
