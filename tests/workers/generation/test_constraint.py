"""Answers of a given form: whatever a model draws, the text is JSON of its schema; what no schema is, is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.constraint import Constraint, ConstraintCompiler
from headrace_workers.generation.params import GenerationParams, read_generation_params
from headrace_workers.generation.sampling import Draw, Drawn, Sampler
from headrace_workers.generation.text import TextAssembler, TokenSpelling

jsonschema = pytest.importorskip("jsonschema")

VOCABULARY = 49_152
ENDS = frozenset({0, 2})
MILL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "wheels": {"type": "integer", "minimum": 1, "maximum": 12},
        "grinds": {"type": "array", "items": {"enum": ["rye", "wheat", "oats"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "wheels", "grinds"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(byte_level: Tokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(byte_level, VOCABULARY, ENDS)


@pytest.fixture(scope="module")
def sampler(spelling: TokenSpelling) -> Sampler:
    return Sampler(VOCABULARY, spelling)


def _params(schema: Any = None, **params: Any) -> GenerationParams:
    form = {"type": "json_schema", "json_schema": {"schema": schema}} if schema is not None else {"type": "json_object"}
    return read_generation_params({"response_format": form, **params})


def _compiled(compiler: ConstraintCompiler, schema: Any = None) -> Constraint:
    constraint = compiler.compile(_params(schema).response_format)
    assert constraint is not None
    return constraint


def follow(constraint: Constraint, tokens: Iterable[int]) -> None:
    for token in tokens:
        constraint.advance(token)


def _answer(sampler: Sampler, draw: Draw, seed: int, tokens: int = 400) -> list[int]:
    """What a model answers that knows nothing."""
    noise = torch.Generator().manual_seed(seed)
    answer: list[int] = []
    while len(answer) < tokens and not draw.finished:
        (drawn,) = sampler.draw(torch.randn(1, VOCABULARY, generator=noise) * 3, [draw])
        assert isinstance(drawn, Drawn)
        answer.append(drawn.token)
    return answer


def _text(spelling: TokenSpelling, tokens: list[int]) -> str:
    assembler = TextAssembler(spelling)
    return "".join(map(assembler.feed, tokens)) + assembler.finish()


# -- in use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_an_answer_keeps_to_its_schema(
    compiler: ConstraintCompiler, sampler: Sampler, spelling: TokenSpelling, seed: int
) -> None:
    draw = Draw(_params(MILL), job_id=f"{seed}", constraint=_compiled(compiler, MILL))
    answer = json.loads(_text(spelling, _answer(sampler, draw, seed)))
    jsonschema.validate(answer, MILL)


def test_any_object_will_do_for_json_object(compiler: ConstraintCompiler, byte_level: Tokenizer) -> None:
    constraint = _compiled(compiler)
    for token in byte_level.encode('{"wheel": [1, null, {"of": "wood"}]').ids:
        constraint.advance(token)
    assert not constraint.can_end
    follow(constraint, byte_level.encode("}").ids)
    assert constraint.can_end


def test_text_needs_no_constraint(compiler: ConstraintCompiler) -> None:
    assert compiler.compile(None) is None
    assert compiler.compile(read_generation_params({"response_format": {"type": "text"}}).response_format) is None


# -- one token after the other -------------------------------------------------------------------------------


def test_only_what_may_come_next_is_left(compiler: ConstraintCompiler, byte_level: Tokenizer) -> None:
    constraint = _compiled(compiler, {"enum": ["rye", "wheat"]})
    follow(constraint, byte_level.encode('"').ids)
    logits = np.zeros(VOCABULARY, np.float32)
    constraint.apply(logits)
    left = {byte_level.decode([int(token)]) for token in np.flatnonzero(np.isfinite(logits))}
    assert left == {"r", "ry", "rye", "w", "wh", "whe", "wheat"} & left
    assert {"r", "w"} <= left


def test_an_answer_may_end_only_when_it_is_complete(compiler: ConstraintCompiler, byte_level: Tokenizer) -> None:
    constraint = _compiled(compiler, {"type": "integer"})
    assert not constraint.can_end
    assert not any(_allows(constraint, end) for end in ENDS)
    follow(constraint, byte_level.encode("12").ids)
    assert constraint.can_end
    assert not constraint.ended  # another digit could follow
    assert all(_allows(constraint, end) for end in ENDS)
    constraint.advance(2)
    assert constraint.ended


def _allows(constraint: Constraint, token: int) -> bool:
    return bool(constraint.mask()[token // 8] >> token % 8 & 1)


def test_another_replica_goes_on_where_one_was(compiler: ConstraintCompiler, sampler: Sampler) -> None:
    whole = Draw(_params(MILL), job_id="a", constraint=_compiled(compiler, MILL))
    tokens = _answer(sampler, whole, seed=5)
    resumed = Draw(_params(MILL), job_id="a", constraint=_compiled(compiler, MILL))
    for token in tokens[:7]:
        resumed.advance(token)
    noise = torch.Generator().manual_seed(5)
    rows = [torch.randn(1, VOCABULARY, generator=noise) * 3 for _ in tokens]
    drawn = [token for row in rows[7:] for token in sampler.draw(row, [resumed])]
    assert [token.token for token in drawn if isinstance(token, Drawn)] == tokens[7:]


def test_answers_of_one_job_go_their_own_ways(compiler: ConstraintCompiler, byte_level: Tokenizer) -> None:
    first = _compiled(compiler, {"enum": ["rye", "wheat"]})
    second = first.copy()
    follow(first, byte_level.encode('"rye"').ids)
    assert first.ended
    follow(second, byte_level.encode('"wheat"').ids)
    assert second.ended


def test_a_token_that_is_not_allowed_is_an_error_and_not_a_crash(compiler: ConstraintCompiler) -> None:
    constraint = _compiled(compiler, MILL)
    with pytest.raises(ItemError) as caught:
        constraint.advance(2)
    assert caught.value.code is FailureCode.ENGINE_FAILED


def test_logits_beyond_the_tokenizers_are_not_allowed(byte_level: Tokenizer) -> None:
    """Models pad their vocabulary."""
    compiler = ConstraintCompiler(byte_level, VOCABULARY + 77, ENDS)
    logits = np.zeros(VOCABULARY + 77, np.float32)
    _compiled(compiler).apply(logits)
    assert np.isneginf(logits[VOCABULARY:]).all()
    assert np.isfinite(logits).any()


def test_an_answer_cannot_lose_itself_in_spaces(compiler: ConstraintCompiler, byte_level: Tokenizer) -> None:
    constraint, spaces = _compiled(compiler), byte_level.encode(" ").ids
    follow(constraint, byte_level.encode("{").ids)
    for _ in range(16):
        follow(constraint, spaces)
    assert not _allows(constraint, spaces[0])


def test_threads_may_compile_and_others_use_it(compiler: ConstraintCompiler) -> None:
    schemas = [{"type": "integer", "maximum": most} for most in range(100, 300)]
    with ThreadPoolExecutor(4) as threads:
        compiled = list(threads.map(lambda schema: _compiled(compiler, schema), schemas))
    assert all(not constraint.copy().can_end for constraint in compiled)


def test_a_tokenizer_that_cannot_spell_json_allows_no_format() -> None:
    words = Tokenizer(models.WordLevel({"mill": 0, "wheel": 1}, unk_token="mill"))
    with pytest.raises(ItemError) as caught:
        _compiled(ConstraintCompiler(words, 2, frozenset()))
    assert caught.value.code is FailureCode.INVALID_PARAMS


# -- schemas that are none -----------------------------------------------------------------------------------


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strng"}, "strng"),
        ({"type": "object", "properties": 3}, "properties"),
        ({"$ref": "http://localhost/mill.json"}, "does not fetch"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "#"}, "cannot be used"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"not": {}}, "Unimplemented"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"enum": ["x" * 66_000]}, "65,536"),
        (_nested(5000), "deep"),
        ({"default": float("nan")}, "not JSON"),
        ({"default": b"mill"}, "not JSON"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(compiler: ConstraintCompiler, schema: Any, said: str) -> None:
    with pytest.raises(ItemError) as caught:
        _compiled(compiler, schema)
    assert caught.value.code is FailureCode.INVALID_PARAMS
    assert said in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9, "items": {"type": "string", "minLength": 10**9}},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"enum": [f"grain {number}" for number in range(3000)]},
        {"anyOf": [{"properties": {f"p{at}": {"type": "string"} for at in range(30)}} for _ in range(30)]},
    ],
)
def test_a_schema_that_is_hard_is_refused_or_can_be_followed(compiler: ConstraintCompiler, schema: Any) -> None:
    try:
        mask = _compiled(compiler, schema).mask()
    except ItemError:
        return
    assert mask.any()
