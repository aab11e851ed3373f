"""What a consumer gets: the terminal entry of a job, and what can be known of a job before it."""

from __future__ import annotations

import math
import struct
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.errors import (
    EngineFailedError,
    FailureCode,
    InvalidInputError,
    JobCancelledError,
    JobDeadError,
    JobExpiredError,
    JobFailedError,
)

if TYPE_CHECKING:
    import numpy

__all__ = ["Failure", "JobState", "JobStatus", "Result", "Status", "Tensor"]


class Status(StrEnum):
    """How a job ended: the five terminal entries."""

    OK = "ok"
    ERROR = "error"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    DELAYED = "delayed"
    """It failed, and waits for its next attempt."""
    RUNNING = "running"
    CANCELLING = "cancelling"
    """A router or a replica has it, and was asked to cancel it."""
    OK = "ok"
    ERROR = "error"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def ended(self) -> bool:
        """Whether the job has its terminal entry."""
        return self not in (JobState.WAITING, JobState.DELAYED, JobState.RUNNING, JobState.CANCELLING)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


_ITEM: Final = {
    "float32": ("f", 4),
    "float16": ("e", 2),
    "int64": ("q", 8),
    "int32": ("i", 4),
    "uint8": ("B", 1),
}


class Tensor(_Message):
    """An array as it travels: little-endian, row-major bytes with their dtype and shape."""

    dtype: Literal["float32", "float16", "int64", "int32", "uint8"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1 << 30)]], Field(max_length=8)]
    data: bytes

    @model_validator(mode="after")
    def _bytes_fill_shape(self) -> Self:
        expected = math.prod(self.shape) * _ITEM[self.dtype][1]
        if len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes do not fill {self.shape} of {self.dtype} ({expected} bytes)")
        return self

    def tolist(self) -> list[Any]:
        """Nested lists of numbers, of this tensor's shape (a number's list if it has no dimension)."""
        code, width = _ITEM[self.dtype]
        flat = list(struct.unpack(f"<{len(self.data) // width}{code}", self.data))
        for size in reversed(self.shape[1:]):
            flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
        return flat

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """A read-only numpy view of the bytes. numpy must be installed; headrace does not bring it."""
        import numpy

        return numpy.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


class Failure(_Message):
    """Why there is no answer: a code for programs, a message and a hint for people."""

    code: str
    """A `FailureCode`, or one of a newer service's that this client does not know yet."""
    message: str
    hint: str = ""
    retryable: bool = False
    """Whether the very same job may fare better another time."""


_BAD_INPUT: Final = {
    FailureCode.UNDECODABLE,
    FailureCode.UNSUPPORTED_VERSION,
    FailureCode.INVALID_INPUT,
    FailureCode.INPUT_TOO_LONG,
    FailureCode.INVALID_PARAMS,
}
_ERROR_OF_STATUS: Final[dict[Status, type[JobFailedError]]] = {
    Status.EXPIRED: JobExpiredError,
    Status.CANCELLED: JobCancelledError,
    Status.DEAD: JobDeadError,
}


class Result(_Message):
    """The one terminal entry of a job."""

    model: str
    id: str
    status: Status
    attempt: int
    """Which of its attempts ended it, from 1."""
    cursor: str
    """The entry id in the inbox: `results(..., after=cursor)` goes on behind this one."""
    output: Any = None
    """A `Tensor`, or plain data. None unless the status is ok, or a generation had begun: then what there is of it."""
    failure: Failure | None = None
    input_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of its input, as the engine counted them; 0 unless the status is ok."""
    queued_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """From submission until a replica began."""
    run_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """What the engine spent on the batch that the job was in."""
    variant: str = ""
    """Which variant of the model answered."""
    traceparent: str = ""
    """W3C trace context that the job was submitted with."""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status is Status.OK

    @property
    def text(self) -> str | None:
        """What was generated, of the first choice and as far as it got; None if the output is not a generation."""
        match self.output:
            case {"choices": [{"text": str() as text}, *_]}:
                return text
        return None

    def unwrap(self) -> Any:
        """The output.

        Raises:
            JobFailedError: of the class that fits the failure, if the status is not ok.
        """
        if self.status is Status.OK:
            return self.output
        failure = self.failure or Failure(code=str(self.status), message=f"the job ended as {self.status}")
        kind = _ERROR_OF_STATUS.get(self.status)
        if kind is None:
            kind = InvalidInputError if failure.code in _BAD_INPUT else EngineFailedError
        raise kind(self.id, failure)


class JobStatus(_Message):
    """What Redis knows of a job. Times are Unix milliseconds of the Redis server's clock."""

    model: str
    id: str
    state: JobState
    inbox: str
    tenant: str
    priority: str
    submitted_ms: int
    finished_ms: int | None = None
    deliveries: int = 0
    """How often a router took it, while it waits or runs."""
    entry_id: str
    """Where it lies: in its lane, or, once it has ended, in its inbox."""
