"""What an encoder can be asked: parameters a job may have, and what becomes of the model's rows in its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import FailureCode
from headrace.messages import Tensor
from headrace_workers.engines.base import ItemError
from headrace_workers.models.pooling import Pooling
from headrace_workers.models.tokenizer import Tokenized

__all__ = ["EmbeddingTask", "Params", "SequenceClassificationTask", "TaskHead", "Text", "TokenClassificationTask"]

Rows = NDArray[np.float32]


class Params(BaseModel):
    """What every job may say."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    truncate: bool | None = None
    """Cut a text that is too long (true) or refuse it (false); None: as the service does."""


class EmbeddingParams(Params):
    """What a job that wants a vector may say."""

    normalize: bool | None = None
    """Scale the vector to length one or not; None: as the model's configuration says."""


class SequenceClassificationParams(Params):
    """What a job that wants a text classified may say."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """How many of the best labels; None: all."""


class TokenClassificationParams(Params):
    """What a job that wants its tokens labelled may say."""

    all: bool = False
    """Also the tokens that nothing was found in (label `O`)."""


class Text:
    """A validated job: its text, its tokens and its parameters."""

    __slots__ = ("params", "text", "tokens")

    def __init__(self, text: str, params: Params, tokens: Tokenized) -> None:
        self.text = text
        self.params = params
        self.tokens = tokens


class TaskHead(Protocol):
    """What makes one task different from another."""

    name: str
    wants_offsets: bool
    """Whether answers point at characters of the text."""
    pooled_by: str | None
    """How each text's rows become one, if that is all that is done with them, so that a GPU may do it."""

    def describe(self) -> dict[str, Any]:
        """For `EngineInfo.details`."""
        ...

    def read_params(self, given: dict[str, Any]) -> Params:
        """Validate a job's parameters.

        Raises:
            ItemError: one is unknown, or of the wrong type.
        """
        ...

    def answers(self, texts: Sequence[Text], rows: Rows, counts: Sequence[int]) -> list[Any]:
        """The model's rows (`counts` of them for each text) as answers; an `ItemError` for those not finite."""
        ...


def read_params(kind: type[Params], given: dict[str, Any]) -> Params:
    """Validate parameters against a task's; the message of a refusal lists what is known."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(step) for step in first["loc"])
        said = "is not known" if first["type"] == "extra_forbidden" else f"is wrong: {first['msg']}"
        raise ItemError(
            FailureCode.INVALID_PARAMS,
            f"parameter {name!r} {said}",
            hint=f"known parameters: {', '.join(sorted(kind.model_fields))}",
        ) from None


_NOT_FINITE: Final = "the model answered with NaN or infinity"


def _not_finite() -> ItemError:
    return ItemError(
        FailureCode.NOT_FINITE, _NOT_FINITE, hint="another text; or another precision, if it happens often"
    )


class EmbeddingTask:
    """Text to vector: a float32 `Tensor` of shape [dimensions]."""

    name = "embedding"
    wants_offsets = False

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self.pooled_by = pooling.modes[0] if len(pooling.modes) == 1 else None

    def describe(self) -> dict[str, Any]:
        """See `TaskHead`."""
        return {"pooling": self.pooling.describe()}

    def read_params(self, given: dict[str, Any]) -> Params:
        """See `TaskHead`."""
        return read_params(EmbeddingParams, given) if given else _NO_EMBEDDING_PARAMS

    def answers(self, texts: Sequence[Text], rows: Rows, counts: Sequence[int]) -> list[Any]:
        """See `TaskHead`."""
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        vectors = self.pooling(rows, starts, normalize=[self._normalize(text.params) for text in texts])
        return [_tensor(vector) for vector in vectors]

    def _normalize(self, params: Params) -> bool:
        assert isinstance(params, EmbeddingParams)
        return self.pooling.normalize if params.normalize is None else params.normalize


def _tensor(vector: Rows) -> Tensor | ItemError:
    if not np.isfinite(vector).all():
        return _not_finite()
    return Tensor(dtype="float32", shape=[len(vector)], data=vector.tobytes())


class SequenceClassificationTask:
    """Text to labels: a list of `{"label", "score"}`, best first."""

    name = "sequence_classification"
    wants_offsets = False
    pooled_by: str | None = None

    def __init__(self, labels: Sequence[str], problem_type: str | None) -> None:
        self.labels = list(labels)
        independent = problem_type == "multi_label_classification" or len(self.labels) == 1
        self._scores = _raw if problem_type == "regression" else _sigmoid if independent else _softmax

    def describe(self) -> dict[str, Any]:
        """See `TaskHead`."""
        return {"labels": self.labels}

    def read_params(self, given: dict[str, Any]) -> Params:
        """See `TaskHead`."""
        return read_params(SequenceClassificationParams, given)

    def answers(self, texts: Sequence[Text], rows: Rows, counts: Sequence[int]) -> list[Any]:
        """See `TaskHead`."""
        return [self._answer(text.params, row) for text, row in zip(texts, rows[: len(counts)], strict=True)]

    def _answer(self, params: Params, logits: Rows) -> Any:
        assert isinstance(params, SequenceClassificationParams)
        if not np.isfinite(logits).all():
            return _not_finite()
        scores = self._scores(logits)
        best = np.argsort(-scores, kind="stable")[: params.top_k]
        return [{"label": self.labels[at], "score": float(scores[at])} for at in best]


class TokenClassificationTask:
    """Text to labelled tokens: a list of `{"label", "score", "start", "end", "word"}`; offsets are in characters."""

    name = "token_classification"
    wants_offsets = True
    pooled_by: str | None = None

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def describe(self) -> dict[str, Any]:
        """See `TaskHead`."""
        return {"labels": self.labels}

    def read_params(self, given: dict[str, Any]) -> Params:
        """See `TaskHead`."""
        return read_params(TokenClassificationParams, given)

    def answers(self, texts: Sequence[Text], rows: Rows, counts: Sequence[int]) -> list[Any]:
        """See `TaskHead`."""
        parts = np.split(rows, np.cumsum(counts)[:-1])
        return [self._answer(text, part) for text, part in zip(texts, parts, strict=True)]

    def _answer(self, text: Text, logits: Rows) -> Any:
        assert isinstance(text.params, TokenClassificationParams)
        if not np.isfinite(logits).all():
            return _not_finite()
        found = []
        for row, (start, end), special in zip(logits, text.tokens.offsets, text.tokens.special, strict=True):
            scores = _softmax(row)
            at = int(scores.argmax())
            if special or (self.labels[at] == "O" and not text.params.all):
                continue
            word = text.text[start:end]
            found.append(
                {"label": self.labels[at], "score": float(scores[at]), "start": start, "end": end, "word": word}
            )
        return found


def _softmax(logits: Rows) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    scores: NDArray[np.float64] = powers / powers.sum()
    return scores


def _sigmoid(logits: Rows) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return scores


def _raw(logits: Rows) -> NDArray[np.float64]:
    return logits.astype(np.float64)


_NO_EMBEDDING_PARAMS: Final = EmbeddingParams()
