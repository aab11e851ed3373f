"""What of a stream is news: whatever is read twice, cut anew or begun in the middle, each character comes once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError, ResultGoneError
from headrace.messages import Chunk, Result, Status
from headrace.streaming.progress import StreamProgress, entry_id_of


def answer(*texts: str) -> Result:
    """The terminal entry of a job with one choice for each text."""
    choices = [{"index": n, "text": text} for n, text in enumerate(texts)]
    return Result(model="m", id="a", status=Status.OK, attempt=1, cursor="9-9", output={"choices": choices})


def test_news_come_out_and_repeats_do_not() -> None:
    progress = StreamProgress()
    assert progress.take("1-0", Chunk(0, "ab", [1, 2])) == Chunk(0, "ab", [1, 2], None, 0, "1-0/2.2")
    assert progress.take("1-0", Chunk(0, "ab", [1, 2])) is None
    assert progress.take("2-0", Chunk(0, "c", [3], None, 2)) == Chunk(0, "c", [3], None, 2, "2-0/3.3")
    assert progress.rest(answer("abcd")) == [Chunk(0, "d", (), None, 3, "9-9/3.4")]


def test_a_cursor_says_what_came_before_it() -> None:
    progress = StreamProgress("5-0/3.2/0.0")
    assert (progress.entry_id, entry_id_of("5-0/3.2/0.0")) == ("5-0", "5-0")
    assert progress.take("6-0", Chunk(1, "x", [7])) == Chunk(1, "x", [7], None, 0, "6-0/3.2/1.1")
    assert [chunk.text for chunk in progress.rest(answer("abc", "xy"))] == ["c", "y"]


def test_text_may_lag_behind_tokens() -> None:
    progress = StreamProgress()
    pieces = [("", [1], 0), ("ü", [2], 1), ("", [3], 2)]
    chunks = [
        progress.take(f"{n}-0", Chunk(0, text, tokens, None, before)) for n, (text, tokens, before) in enumerate(pieces)
    ]
    assert [chunk and chunk.text for chunk in chunks] == ["", "ü", ""]
    assert progress.cursor == "2-0/3.1"


def test_text_without_a_token_is_told_from_its_repeat() -> None:
    progress = StreamProgress()
    chunks = [Chunk(0, "a", [1]), Chunk(0, "b", [], None, 1), Chunk(0, "b", [], None, 1), Chunk(0, "c", [2], None, 1)]
    news = [progress.take(f"{n}-0", chunk) for n, chunk in enumerate(chunks)]
    assert [chunk and chunk.text for chunk in news] == ["a", "b", None, "c"]


def test_gaps_are_errors() -> None:
    progress = StreamProgress()
    with pytest.raises(ResultGoneError, match="the beginning"):
        progress.take("1-0", Chunk(0, "b", [2], None, 1))
    progress.take("2-0", Chunk(0, "a", [1]))
    with pytest.raises(DecodeError, match="follows token 2; the last was 1"):
        progress.take("3-0", Chunk(0, "c", [3], None, 2))


def test_an_overlap_that_nobody_can_cut_is_an_error() -> None:
    progress = StreamProgress("1-0/3.9")
    with pytest.raises(DecodeError, match="overlaps"):
        progress.take("2-0", Chunk(0, "cd", [3, 4], None, 2))


TEXTS = st.lists(st.text(max_size=3), min_size=1, max_size=12)


@given(TEXTS, st.randoms(use_true_random=False))
def test_the_pieces_add_up_whatever_is_repeated(pieces: list[str], chance: random.Random) -> None:
    """A token for each piece. Chunks of one or more tokens, read again and again from anywhere before, and cut anew
    where an earlier chunk ended; the stream is left now and then, and gone on with from its cursor."""
    progress, seen, ends, read = StreamProgress(), "", [0], list[tuple[int, int]]()
    while ends[-1] < len(pieces):
        start = chance.choice(ends) if chance.random() < 0.3 else ends[-1]
        end = chance.randrange(start, len(pieces)) + 1
        read.append((start, end))
        for one, other in [(start, end), *chance.choices(read, k=2)]:
            if one > ends[-1]:
                continue
            chunk = Chunk(0, "".join(pieces[one:other]), list(range(one, other)), None, one)
            news = progress.take(f"{len(read)}-0", chunk)
            seen += news.text if news else ""
            if other > ends[-1]:
                ends.append(other)
        if chance.random() < 0.2:
            progress, ends = StreamProgress(progress.cursor), ends[-1:]
            read = []
    seen += "".join(chunk.text for chunk in progress.rest(answer("".join(pieces) + "end")))
    assert seen == "".join(pieces) + "end"


@pytest.mark.parametrize("output", [None, "x", {"choices": [1]}, {"choices": None}, {}])
def test_an_answer_of_another_kind_has_no_rest(output: Any) -> None:
    result = Result(model="m", id="a", status=Status.OK, attempt=1, cursor="9-9", output=output)
    assert StreamProgress().rest(result) == []
