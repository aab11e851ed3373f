"""Parameters of a generation: OpenAI's names and ranges, and a refusal that names what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import read_generation_params


def _refusal(**given: Any) -> ItemError:
    with pytest.raises(ItemError) as caught:
        read_generation_params(given)
    assert caught.value.code is FailureCode.INVALID_PARAMS
    assert "temperature" in caught.value.hint or "max_tokens" in caught.value.hint
    return caught.value


# -- in use --------------------------------------------------------------------------------------------------


def test_a_job_that_says_nothing_is_sampled_as_openai_does() -> None:
    params = read_generation_params({})
    assert (params.temperature, params.top_p, params.n, params.max_tokens) == (1.0, 1.0, 1, None)
    assert (params.stop, params.stream, params.logprobs) == ((), False, False)


def test_parameters_as_users_know_them() -> None:
    params = read_generation_params({"temperature": 0, "max_completion_tokens": 12, "stop": "\n", "seed": 7, "n": 2})
    assert (params.temperature, params.max_tokens, params.stop, params.seed, params.n) == (0.0, 12, ("\n",), 7, 2)


def test_a_schema_is_kept_as_it_came() -> None:
    schema = {"type": "object", "properties": {"height_m": {"type": "number"}}}
    form = {"type": "json_schema", "json_schema": {"name": "mill", "schema": schema, "strict": True}}
    params = read_generation_params({"response_format": form})
    assert params.response_format is not None
    assert params.response_format.json_schema is not None
    assert params.response_format.json_schema.content == schema


# -- edges ---------------------------------------------------------------------------------------------------


def test_an_unknown_parameter_is_named_and_the_known_are_listed() -> None:
    error = _refusal(temprature=1)
    assert error.message == "parameter 'temprature' is not known"
    assert "top_p" in error.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("max_tokens", "12"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", 0),
        ("min_p", -1),
        ("min_p", 1.5),
        ("stop", [""]),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", "a" * 257),
        ("stop", [3]),
        ("stop", 3),
        ("seed", 1 << 63),
        ("seed", "1"),
        ("frequency_penalty", 2.5),
        ("presence_penalty", float("inf")),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("n", 0),
        ("n", 17),
        ("stream", "yes"),
        ("truncate", 1),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_object", "json_schema": {"schema": {}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": "{}"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
    ],
)
def test_what_is_out_of_range_or_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    assert f"parameter '{name}" in _refusal(**{name: value}).message


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 1, "temperature": 2, "top_p": 1, "min_p": 0, "n": 16, "seed": -(1 << 63), "stop": ["a"] * 16},
        {"top_logprobs": 20, "logprobs": True, "frequency_penalty": -2, "presence_penalty": 2, "top_k": 1},
        {"truncate": True, "stop": [], "response_format": {"type": "text"}, "seed": None},
    ],
)
def test_the_ends_of_ranges_are_in_them(given: dict[str, Any]) -> None:
    read_generation_params(given)


def test_top_logprobs_ask_for_logprobs() -> None:
    assert "logprobs" in _refusal(top_logprobs=3).message


def test_one_parameter_by_two_names_is_refused() -> None:
    assert "max_completion_tokens" in _refusal(max_tokens=3, max_completion_tokens=4).message
