"""What a job of a decoder may ask for, in the words of OpenAI's API; what is wrong is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headrace.errors import FailureCode
from headrace_workers.engines.base import ItemError
from headrace_workers.engines.tasks import Params

__all__ = ["DEFAULT_MAX_TOKENS", "GenerationParams", "JsonSchema", "ResponseFormat", "read_generation_params"]

DEFAULT_MAX_TOKENS: Final = 256
"""New tokens of a job that does not say `max_tokens`, or what its prompt leaves of the context, if that is less."""

_ALIASES: Final = {"max_completion_tokens": "max_tokens"}
_MOST_STOPS: Final = 16
_LONGEST_STOP: Final = 256


def _as_tuple(value: Any) -> Any:
    """`stop` is one string or several; msgpack knows lists only."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _as_float(value: Any) -> Any:
    """JSON writes 1.0 as 1 in many languages."""
    return float(value) if type(value) is int and abs(value) < 1 << 53 else value


StopString = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
Number = Annotated[float, BeforeValidator(_as_float), Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class JsonSchema(_Strict):
    """A schema that the answer is to follow."""

    name: str | None = None
    description: str | None = None
    content: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Taken for the API's sake: the schema is kept to in any case."""


class ResponseFormat(_Strict):
    """What form the answer is to have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type 'json_schema', and to no other")
        return self


class GenerationParams(Params):
    """How a prompt is to be continued. Defaults are OpenAI's, but for `max_tokens` (`DEFAULT_MAX_TOKENS`)."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """New tokens at most; `max_completion_tokens` is another name for it."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    """0: always the most probable token."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    stop: Annotated[tuple[StopString, ...], BeforeValidator(_as_tuple), Field(max_length=_MOST_STOPS)] = ()
    """The text ends before the first of these."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed gives the same text; None: one of the job's own."""
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """How many of the most probable tokens are told with each token; asks for `logprobs`."""
    n: Annotated[int, Field(ge=1, le=16)] = 1
    """How many answers."""
    response_format: ResponseFormat | None = None
    stream: bool = False
    ignore_eos: bool = False
    """Whether the answer goes on behind the tokens that end one, up to `max_tokens`: for benchmarks, as in vLLM."""

    @model_validator(mode="after")
    def _consistent(self) -> GenerationParams:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is told with logprobs: true only")
        return self


_PLAIN: Final = GenerationParams()


def read_generation_params(given: dict[str, Any]) -> GenerationParams:
    """Validate a job's parameters.

    Raises:
        ItemError: one is unknown, of the wrong type or out of its range (`INVALID_PARAMS`).
    """
    if not given:
        return _PLAIN
    try:
        return GenerationParams.model_validate(_renamed(given))
    except ValidationError as error:
        raise _refusal(error) from None


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    for alias, name in _ALIASES.items():
        if alias in given and name in given:
            raise ItemError(
                FailureCode.INVALID_PARAMS,
                f"parameters {alias!r} and {name!r} are one and the same",
                hint=f"give {name!r} only",
            )
    return {_ALIASES.get(name, name): value for name, value in given.items()}


def _refusal(error: ValidationError) -> ItemError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(step) for step in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = f"parameter {name!r} is not known"
    elif name:
        said = f"parameter {name!r} is wrong: {said}"
    known = ", ".join(sorted(GenerationParams.model_fields))
    return ItemError(FailureCode.INVALID_PARAMS, said, hint=f"known parameters: {known}")
