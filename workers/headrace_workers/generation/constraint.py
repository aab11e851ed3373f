"""Answers of a given form: which tokens may come next, so that the text is JSON, or JSON of a schema.

llguidance keeps to the schema token by token; this file bounds what a schema may cost, and says in our words what is
wrong with one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions
    from tokenizers import Tokenizer

__all__ = ["Constraint", "ConstraintCompiler"]

_MOST_SCHEMA_BYTES: Final = 64 << 10
_DEEPEST_SCHEMA: Final = 32
_KEPT: Final = 64
"""Compiled schemas that are kept: many jobs of one producer share theirs."""
_LONGEST_REASON: Final = 200

_ANY_OBJECT: Final = {"type": "object"}
_FORM: Final[JsonCompileOptions] = {"whitespace_flexible": True, "whitespace_pattern": r"\n?[ \t]{0,16}"}
"""As models write JSON, and never more space than that: small ones would write nothing else once they begin."""
_LEXER_FUEL: Final = 1_000_000
"""What building a grammar's lexer may cost, in llguidance's unit: some 20 ms."""
_STEP_ITEMS: Final = 20_000
"""What one mask may cost, in llguidance's unit: a few milliseconds."""
_GRAMMAR_SYMBOLS: Final = 200_000
_LEXER_STATES: Final = 50_000
"""Of 1–2 kB each."""

_PENALTIES: Final[NDArray[np.float32]] = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    -np.float32(np.inf),
)
"""[256, 8]: what to add to eight logits for a byte of the mask."""


class Constraint:
    """What an answer may still become."""

    __slots__ = ("_matcher", "_penalties")

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._penalties: NDArray[np.float32] | None = None

    def copy(self) -> Constraint:
        """Another answer's, at the point where this one is."""
        return Constraint(self._matcher.deep_copy())

    def mask(self) -> NDArray[np.uint8]:
        """Which tokens may come next: uint8 [vocabulary / 8, rounded up to words], token t as bit t % 8 of byte t // 8.

        Raises:
            ItemError: finding that out takes more than is allowed (`INVALID_PARAMS`).
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return mask

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Make the logits [vocabulary] of all other tokens negative infinity, in place.

        Raises:
            ItemError: as `mask`.
        """
        mask = self.mask()
        if self._penalties is None:
            self._penalties = np.empty((len(mask), 8), np.float32)
        np.take(_PENALTIES, mask, axis=0, out=self._penalties)
        logits += self._penalties.reshape(-1)[: len(logits)]

    def advance(self, token: int) -> None:
        """Append a token.

        Raises:
            ItemError: it is not allowed (`ENGINE_FAILED`), which no token is that was drawn under `apply`.
        """
        if not self._matcher.consume_token(token):
            raise ItemError(
                FailureCode.ENGINE_FAILED, f"token {token} is not of the response format: {_reason(self._matcher)}"
            )

    @property
    def can_end(self) -> bool:
        """Whether what is there is complete."""
        return bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        """Whether it is complete and nothing more can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(f"is too complex to follow: {_reason(self._matcher)}")


class ConstraintCompiler:
    """Compiles the `response_format` of jobs. May be used from any thread.

    Args:
        tokenizer: the model's.
        vocabulary: how many logits a row has, which may be more than the tokenizer knows.
        end_tokens: what ends an answer, which is allowed once it is complete.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary, self._end_tokens = tokenizer, vocabulary, end_tokens
        self._vocabulary_tree: Any = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, response_format: ResponseFormat | None) -> Constraint | None:
        """The constraint of a format; None if any text will do.

        Raises:
            ItemError: the schema is invalid, too large, too deep, or uses what is not supported (`INVALID_PARAMS`).
        """
        if response_format is None or response_format.type == "text":
            return None
        named = response_format.json_schema
        schema = _checked(named.content if named is not None else _ANY_OBJECT)
        with self._lock:
            matcher = self._compiled.pop(schema, None) or self._matcher(schema)
            self._compiled[schema] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy())

    def _matcher(self, schema: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        if self._vocabulary_tree is None:  # made for the first job that needs it: it takes time and memory
            self._vocabulary_tree = self._tree()
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
        limits = LLParserLimits(
            initial_lexer_fuel=_LEXER_FUEL,
            step_max_items=_STEP_ITEMS,
            max_grammar_size=_GRAMMAR_SYMBOLS,
            max_lexer_states=_LEXER_STATES,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._vocabulary_tree, grammar, limits=limits, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the dearest one, whose work copies share, while no decoding waits for it
        if matcher.is_error():
            raise _refused(f"cannot be used: {_reason(matcher)}")
        return matcher

    def _tree(self) -> Any:
        from llguidance import LLTokenizer

        ends = sorted(self._end_tokens)
        try:
            return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._vocabulary, eos_token=ends or None)
        except Exception as error:  # whatever it finds lacking
            raise ItemError(
                FailureCode.INVALID_PARAMS,
                f"parameter 'response_format': this model's tokenizer does not allow one: {error}"[:_LONGEST_REASON],
                hint="submit it without",
            ) from None


def _checked(schema: dict[str, Any]) -> str:
    """A schema as JSON, if it is of a size that may be compiled."""
    if _depth(schema) > _DEEPEST_SCHEMA:
        raise _refused(f"is nested more than {_DEEPEST_SCHEMA} deep")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _refused(f"is not JSON: {error}") from None
    if len(text) > _MOST_SCHEMA_BYTES:
        raise _refused(f"has {len(text):,} bytes; {_MOST_SCHEMA_BYTES:,} are allowed")
    return text


def _depth(value: Any) -> int:
    """Without recursion, which deep input would exhaust."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _reason(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:_LONGEST_REASON]


def _refused(said: str) -> ItemError:
    return ItemError(
        FailureCode.INVALID_PARAMS,
        f"parameter 'response_format': the schema {said}",
        hint="a smaller or plainer JSON schema",
    )
