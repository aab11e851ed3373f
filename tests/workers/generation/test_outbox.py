"""Chunks that wait to be written: put together by choice, in order, and never larger than an entry may be."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.codec import MAX_PAYLOAD_BYTES, pack
from headrace_workers.generation.outbox import merge


def chunk(choice: int, before: int, *tokens: int, logprobs: bool = False) -> dict[str, Any]:
    said: dict[str, Any] = {"i": choice, "n": before, "tokens": list(tokens), "text": "".join(f"{n} " for n in tokens)}
    return said | ({"logprobs": [{"token": str(token)} for token in tokens]} if logprobs else {})


def merged(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for one in chunks:
        merge(pieces, one)
    return pieces


def test_the_tokens_of_a_choice_become_one_chunk() -> None:
    assert merged(chunk(0, 4, 7), chunk(0, 5, 8), chunk(0, 6, 9)) == [chunk(0, 4, 7, 8, 9)]


def test_each_choice_has_a_chunk_of_its_own() -> None:
    assert merged(chunk(0, 0, 1), chunk(1, 0, 2), chunk(0, 1, 3)) == [chunk(0, 0, 1, 3), chunk(1, 0, 2)]


def test_logprobs_go_with_their_tokens() -> None:
    assert merged(chunk(0, 0, 1, logprobs=True), chunk(0, 1, 2, logprobs=True)) == [chunk(0, 0, 1, 2, logprobs=True)]


def test_what_was_handed_over_is_left_as_it_was() -> None:
    """A chunk is an event of the engine's, which may have kept it."""
    first = chunk(0, 0, 1)
    merged(first, chunk(0, 1, 2))
    assert first == chunk(0, 0, 1)


def test_a_long_outage_makes_several_chunks_each_of_which_fits_an_entry() -> None:
    """With twenty alternatives to each token and their bytes."""
    alternatives = [{"token": "x" * 16, "logprob": -0.123456789, "bytes": [255] * 16}] * 20
    some = [
        {"i": 0, "n": n, "tokens": [n], "text": "x", "logprobs": [{"token": "x", "top_logprobs": alternatives}]}
        for n in range(3000)
    ]
    pieces = merged(*some)

    assert [piece["n"] for piece in pieces] == list(range(0, 3000, 256))
    assert all(len(pack(piece)) < MAX_PAYLOAD_BYTES for piece in pieces)


@given(st.lists(st.integers(0, 2), max_size=50))
def test_nothing_is_lost_doubled_or_out_of_order(choices: list[int]) -> None:
    counts = [0, 0, 0]
    said: list[list[int]] = [[], [], []]
    pieces: list[dict[str, Any]] = []
    for token, choice in enumerate(choices):
        merge(pieces, chunk(choice, counts[choice], token))
        counts[choice] += 1
        said[choice].append(token)

    for choice in range(3):
        own = [piece for piece in pieces if piece["i"] == choice]
        assert [token for piece in own for token in piece["tokens"]] == said[choice]
        assert [piece["n"] for piece in own] == [sum(len(p["tokens"]) for p in own[:n]) for n in range(len(own))]
