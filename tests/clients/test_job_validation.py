"""What a job may be. Everything else is an `InvalidJobError` that names the field and never shows its value."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import InvalidJobError, Job
from headrace.codec import MAX_DEPTH, MAX_PAYLOAD_BYTES
from headrace.messages import pack_payload, unpack_payload

MARK = "s3cr3t-value"
GOOD: dict[str, Any] = {"model": "minilm", "input": "text"}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


BAD: dict[str, list[Any]] = {
    "model": ["", "a b", "a/b", "ümlaut", "x" * 65, "m#", "m#1234", "{m}", f"{MARK} ", "m\n", b"bytes", 1, None, ["m"]],
    "input": [
        math.nan,
        math.inf,
        [1.0, -math.inf],
        {"a": {"b": math.nan}},
        {1: "key"},
        {None: MARK},
        {MARK, "set"},
        object(),
        1j,
        bytearray(b"x"),
        memoryview(b"x"),
        Unhashable(),
        nested(MAX_DEPTH + 1),
        {"deep": nested(MAX_DEPTH)},
    ],
    "params": [
        None,
        [],
        MARK,
        {1: "x"},
        {"a": math.nan},
        {"a": {MARK}},
        {"a": nested(MAX_DEPTH + 1)},
        {f"name-{n}": 0 for n in range(65)},
    ],
    "id": ["", "a b", f"{MARK}/", "x" * 65, "é", "a\n", b"id", 7, ["id"], {}],
    "priority": ["urgent", "", MARK, 0, 1, None, [], {}, Unhashable(), b"high", "HIGH"],
    "deadline_s": [0, -1, math.nan, math.inf, 30 * 86_400 + 1, MARK, "5", [5], {}],
    "tenant": ["", "a b", "x" * 65, MARK + "\x00", 1, None, []],
    "inbox": ["", "a b", "x" * 65, MARK + "}", 1, []],
    "traceparent": ["XYZ", MARK, "0" * 65, 1, None, [], "00-ab\n"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    """One line for people: the field and what is wrong with it."""
    with pytest.raises(InvalidJobError, match=rf"^invalid job: {field}") as caught:
        Job(**{**GOOD, field: value})

    assert MARK not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_several_bad_fields_are_all_named() -> None:
    """Nobody has to submit five times to find five mistakes."""
    with pytest.raises(InvalidJobError) as caught:
        Job(model="", input=math.nan, priority="urgent", deadline_s=-1)

    assert all(f"{field}: " in str(caught.value) for field in ("model", "input", "priority", "deadline_s"))


@pytest.mark.parametrize("missing", ["model", "input"])
def test_what_must_be_given(missing: str) -> None:
    """A model and an input are all that a job needs."""
    with pytest.raises(InvalidJobError, match=f"{missing}: Field required"):
        Job(**{name: value for name, value in GOOD.items() if name != missing})


def test_an_unknown_field_is_refused_by_its_name() -> None:
    """A misspelt option is not ignored."""
    with pytest.raises(InvalidJobError, match="dead_line: Extra inputs are not permitted"):
        Job(**GOOD, dead_line=MARK)


def test_the_error_is_a_value_error_too() -> None:
    """Callers that know nothing of headrace's tree can catch it."""
    assert issubclass(InvalidJobError, ValueError)


KINDS = [None, True, 0, -(2**63), 2**64 - 1, 1.5, "", "\U0001f600 \x00 \u2028", b"", b"\x00\xff"]
SHAPES = [[], [1, [2]], (1, 2), {}, {"a": [None]}, nested(MAX_DEPTH), {"deep": nested(MAX_DEPTH - 1)}]


@pytest.mark.parametrize("value", [*KINDS, *SHAPES])
def test_plain_data_of_every_kind_travels(value: Any) -> None:
    """Inputs are what msgpack knows; engines say what they take of it."""
    job = Job(model="m", input=value, params={"option": value})

    received, params = unpack_payload(pack_payload(job))

    expected = list(value) if isinstance(value, tuple) else value
    assert received == expected
    assert params == {"option": expected}


@pytest.mark.parametrize("value", ["\ud800", ["a", {"b": "\udfff x"}], {"\ud800": 1}, 2**64, -(2**63) - 1])
def test_what_msgpack_cannot_say_is_refused_when_it_is_packed(value: Any) -> None:
    """A lone surrogate is no Unicode text, and a number may be too large; nothing is sent."""
    with pytest.raises(InvalidJobError, match="invalid job: input or params cannot be packed"):
        pack_payload(Job(model="m", input=value))


def test_an_error_can_be_printed_though_the_job_holds_lone_surrogates() -> None:
    """The message itself is proper Unicode, also where it has to name a field or a key."""
    for fields in ({"params": {"\ud800": math.nan}}, {"\ud800": 1}, {"id": "\ud800"}, {"priority": "\ud800"}):
        with pytest.raises(InvalidJobError) as caught:
            Job(**{**GOOD, **fields})
        str(caught.value).encode()


def test_the_largest_payload() -> None:
    """One byte more than the limit is too large, and the message says by how much."""
    overhead = len(pack_payload(Job(model="m", input="x" * 70_000))) - 70_000
    fits = Job(model="m", input="x" * (MAX_PAYLOAD_BYTES - overhead))
    assert len(pack_payload(fits)) == MAX_PAYLOAD_BYTES

    with pytest.raises(InvalidJobError, match="take 1,048,577 bytes, the limit is 1,048,576"):
        pack_payload(Job(model="m", input=fits.input + "x"))


def test_a_list_that_holds_itself() -> None:
    """Endless nesting is deep nesting."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidJobError, match="nested deeper than 16"):
        Job(model="m", input=endless)


def test_ids_are_made_for_whoever_does_not_care() -> None:
    """Each job gets its own."""
    assert len({Job(**GOOD).id for _ in range(1000)}) == 1000


def test_a_job_does_not_change() -> None:
    """What was submitted is what it says."""
    job = Job(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        job.input = "another"  # type: ignore[misc]


def test_a_job_can_be_pickled_between_processes_of_a_producer() -> None:
    """Producers have process pools."""
    job = Job(**GOOD, params={"a": 1}, deadline_s=5, priority="low")
    assert pickle.loads(pickle.dumps(job)) == job


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | TEXT
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    SCALARS | FLOATS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(PLAIN, st.dictionaries(TEXT, PLAIN, max_size=4))
def test_every_plain_input_comes_back_as_it_was(value: Any, params: dict[str, Any]) -> None:
    """Packing and unpacking are inverse on everything that a job accepts."""
    job = Job(model="m", input=value, params=params)

    assert unpack_payload(pack_payload(job)) == (value, params)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(Job.model_fields)), st.text() | st.integers() | st.none() | PLAIN))
def test_whatever_fields_hold_the_error_is_ours(fields: dict[str, Any]) -> None:
    """No pydantic error, no TypeError, no RecursionError reaches a producer."""
    try:
        Job(**fields)
    except InvalidJobError as error:
        str(error).encode()
