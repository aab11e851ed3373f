"""Text out of tokens, as it comes: what is given out is certain, and all of it together is what the tokens say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace_workers.generation.text import TextAssembler, TokenSpelling

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


def _sentence_piece(*, strip: bool = True) -> Tokenizer:
    """Like Llama 2's: a space is part of the word behind it, and what has no word is spelled in bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehilmnorstw"]
    pieces += ["▁the", "▁mill", "▁wh", "ee", "ll"]
    made = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(inner + ([decoders.Strip(" ", 1, 0)] if strip else []))
    return made


def _words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "mill": 2, "wheel": 3}, unk_token="<unk>"))
    made.add_special_tokens(["</s>"])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def _text(spelling: TokenSpelling, tokens: Sequence[int], *stop: str) -> str:
    assembler = TextAssembler(spelling, stop)
    return "".join(map(assembler.feed, tokens)) + assembler.finish()


def _cut(text: str, stop: Sequence[str]) -> str:
    """What `TextAssembler` promises, in other words."""
    for end in range(len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


# -- in use --------------------------------------------------------------------------------------------------


def test_text_comes_token_by_token(byte_level: Tokenizer, spelling: TokenSpelling) -> None:
    tokens = byte_level.encode("The mill stands by the river.").ids
    assembler = TextAssembler(spelling)
    pieces = [assembler.feed(token) for token in tokens]
    assert pieces == ["The", " mill", " stands", " by", " the", " river", "."]
    assert assembler.finish() == ""


def test_a_character_of_several_tokens_comes_whole(byte_level: Tokenizer, spelling: TokenSpelling) -> None:
    tokens = byte_level.encode("🎡").ids
    assembler = TextAssembler(spelling)
    assert len(tokens) > 1
    assert [assembler.feed(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🎡"]


def test_text_ends_before_a_stop_string_that_spans_tokens(byte_level: Tokenizer, spelling: TokenSpelling) -> None:
    assembler = TextAssembler(spelling, [". It"])
    pieces = [assembler.feed(token) for token in byte_level.encode("A mill. It turns.").ids]
    assert "".join(pieces) == "A mill"
    assert "." not in "".join(pieces[:3])  # held back: it might begin a stop string, and does
    assert assembler.stopped
    assert assembler.finish() == ""


def test_what_only_looked_like_a_stop_string_is_given_out(byte_level: Tokenizer, spelling: TokenSpelling) -> None:
    assembler = TextAssembler(spelling, ["river bed"])
    pieces = [assembler.feed(token) for token in byte_level.encode("the river is").ids]
    assert pieces == ["the", " ", "river is"]


# -- edges ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 49151), max_size=60))
def test_any_tokens_say_what_the_tokenizer_says(
    byte_level: Tokenizer, spelling: TokenSpelling, tokens: list[int]
) -> None:
    assert _text(spelling, tokens) == byte_level.decode(tokens, skip_special_tokens=True)


@given(TEXTS)
def test_any_text_comes_back(byte_level: Tokenizer, spelling: TokenSpelling, text: str) -> None:
    tokens = byte_level.encode(text).ids
    assert _text(spelling, tokens) == byte_level.decode(tokens)  # the vocabulary lacks a few control characters


@given(st.text("theml w\x00é👩", max_size=30))
def test_sentence_piece_goes_on_behind_the_prompt(text: str) -> None:
    tokenizer = _sentence_piece()
    spelling = TokenSpelling(tokenizer)
    prompt, tokens = tokenizer.encode("the mill").ids, tokenizer.encode(text).ids
    whole = tokenizer.decode(prompt + tokens)
    assert tokenizer.decode(prompt) + _text(spelling, tokens) == whole
    assert _text(spelling, tokens).removeprefix(" ") == tokenizer.decode(tokens)


def test_byte_tokens_make_characters_as_soon_as_they_can() -> None:
    tokenizer = _sentence_piece(strip=False)
    tokens = tokenizer.get_vocab()
    bytes_of = [tokens[f"<0x{byte:02X}>"] for byte in "é🎡".encode()]
    assembler = TextAssembler(TokenSpelling(tokenizer))
    assert [assembler.feed(token) for token in bytes_of] == ["", "é", "", "", "", "🎡"]
    assembler.feed(bytes_of[0])
    assert assembler.feed(tokens["ll"]) == "�ll"
    assembler.feed(bytes_of[2])
    assert assembler.finish() == "�"


def test_words_without_a_decoder_have_spaces_between() -> None:
    assert _text(TokenSpelling(_words()), [2, 3, 1, 3]) == " mill wheel wheel"


def test_special_tokens_and_numbers_beyond_the_vocabulary_say_nothing(
    byte_level: Tokenizer, spelling: TokenSpelling
) -> None:
    assert _text(spelling, [1, 2, 49152, 10**6]) == ""
    assert spelling.literally(2) == b"<|im_end|>"


STOPS = st.lists(st.text("ab. ", min_size=1, max_size=5), max_size=4)


@given(st.text("ab. ", max_size=40), STOPS)
@settings(max_examples=300)
def test_every_stop_string_is_found(byte_level: Tokenizer, spelling: TokenSpelling, text: str, stop: list[str]) -> None:
    assert _text(spelling, byte_level.encode(text).ids, *stop) == _cut(text, stop)


@given(st.text("ab. é", max_size=40), STOPS, st.data())
def test_where_the_tokens_are_cut_changes_nothing(
    byte_level: Tokenizer, spelling: TokenSpelling, text: str, stop: list[str], data: st.DataObject
) -> None:
    alone = [byte_level.encode(character).ids for character in text]
    cut = data.draw(st.integers(0, len(text)))
    tokens = [*byte_level.encode(text[:cut]).ids, *(token for ids in alone[cut:] for token in ids)]
    assert _text(spelling, tokens, *stop) == _cut(text, stop)


@given(st.lists(st.integers(0, 49151), max_size=20), STOPS, st.data())
def test_what_was_given_out_stays_so_and_is_all_that_is_certain(
    spelling: TokenSpelling, tokens: list[int], stop: list[str], data: st.DataObject
) -> None:
    """A stream taken over at any token goes on where it was."""
    cut = data.draw(st.integers(0, len(tokens)))
    first, second = TextAssembler(spelling, stop), TextAssembler(spelling, stop)
    given_out = [first.feed(token) for token in tokens]
    assert "".join(map(second.feed, tokens[:cut])) == "".join(given_out[:cut])
    assert [second.feed(token) for token in tokens[cut:]] == given_out[cut:]
    assert second.finish() == first.finish()


@pytest.mark.parametrize("stop", ["t", "th", "the"])
def test_a_stop_string_may_be_the_very_beginning(byte_level: Tokenizer, spelling: TokenSpelling, stop: str) -> None:
    assembler = TextAssembler(spelling, [stop])
    assert "".join(map(assembler.feed, byte_level.encode("the mill").ids)) == ""
    assert assembler.stopped


def test_the_longest_stop_strings_cost_no_more_than_their_characters(
    byte_level: Tokenizer, spelling: TokenSpelling
) -> None:
    stop = ["a" * 255 + chr(ord("b") + at) for at in range(16)]
    text = "a" * 600 + "b"
    assembler = TextAssembler(spelling, stop)
    out = "".join(map(assembler.feed, byte_level.encode(text).ids))
    assert out == "a" * 345
    assert assembler.stopped
