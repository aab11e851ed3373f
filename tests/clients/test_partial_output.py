"""What chunks come to where nobody finishes their job: one function, for routers and replicas."""

from __future__ import annotations

from headrace.messages.chunk import Chunk, pack_chunk, partial_output, unpack_chunk


def test_the_chunks_of_a_job_come_to_an_output() -> None:
    chunks = [Chunk(0, "Once "), Chunk(0, "upon", [7, 8], before=1)]
    assert partial_output(chunks, "deadline", prompt_tokens=5) == {
        "choices": [{"index": 0, "text": "Once upon", "finish_reason": "deadline"}],
        "usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7, "cached_tokens": 0},
    }


def test_nothing_delivered_is_no_output() -> None:
    assert partial_output([], "cancelled", prompt_tokens=5) is None


def test_who_does_not_know_the_prompt_says_nothing_of_it() -> None:
    partial = partial_output([Chunk(0, "a", [1])], "cancelled")
    assert partial is not None
    assert partial["usage"] == {"completion_tokens": 1}


def test_choices_are_kept_apart_and_sorted() -> None:
    """They are delivered as they come, which is in any order."""
    partial = partial_output([Chunk(1, "b", [3]), Chunk(0, "a", [1]), Chunk(1, "c", [4, 5])], "cancelled")
    assert partial is not None
    assert [(choice["index"], choice["text"]) for choice in partial["choices"]] == [(0, "a"), (1, "bc")]
    assert partial["usage"]["completion_tokens"] == 4


def test_logprobs_stay_with_their_tokens() -> None:
    """And a choice for which none were asked has none."""
    one, two = {"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}
    partial = partial_output([Chunk(0, "a", [1], [one]), Chunk(0, "b", [2], [two]), Chunk(1, "c", [3])], "cancelled")
    assert partial is not None
    assert partial["choices"][0]["logprobs"] == [one, two]
    assert "logprobs" not in partial["choices"][1]


def test_the_body_of_a_chunk_is_what_is_packed() -> None:
    """An engine that goes on behind a chunk is given the map that its predecessor wrote."""
    chunk = Chunk(1, "a", [3], [{"token": "a", "logprob": -0.5}], before=2)
    packed = pack_chunk(1, before=2, tokens=[3], text="a", logprobs=[{"token": "a", "logprob": -0.5}])
    assert unpack_chunk(packed) == chunk
    assert chunk.body == {"i": 1, "n": 2, "tokens": [3], "text": "a", "logprobs": [{"token": "a", "logprob": -0.5}]}
