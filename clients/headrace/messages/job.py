"""What a producer asks for, and what it is told when it hands a job over."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headrace.codec import check_plain
from headrace.errors import InvalidJobError
from headrace.ids import MODEL_PATTERN, NAME_PATTERN, new_job_id
from headrace.messages.retry import RetryPolicy

__all__ = ["PRIORITIES", "CancelOutcome", "Job", "Name", "Priority", "Receipt", "SubmitOutcome", "explain"]

Priority = Literal["high", "normal", "low"]
"""How much a job's waiting matters: each has lanes of its own in a model, and a share of its replicas' work."""

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
"""By their numbers, 0 to 2."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Plain = Annotated[Any, AfterValidator(check_plain)]


class Job(BaseModel):
    """One unit of inference.

    Raises:
        InvalidJobError: naming the field, what was wrong with it and what would be right.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    model: Annotated[str, Field(pattern=MODEL_PATTERN)]
    """The name under which the service registered the model."""
    input: Plain
    """What the model runs on: a text for encoders; what the engine documents for others."""
    params: dict[str, Plain] = Field(default_factory=dict, max_length=64)
    """The task's options, by name; an unknown one is refused by the replica, for this job alone."""
    id: Name = Field(default_factory=new_job_id)
    """The producer's own, or a UUIDv7. While it is known, the same id is never run twice."""
    priority: Priority = "normal"
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400, allow_inf_nan=False)] | None = None
    """Seconds from submission after which an answer is of no use. None: as long as it takes."""
    tenant: Name = "default"
    """Whom the job is done for: the unit of caps and of fairness."""
    inbox: Name | None = None
    """Where the answer goes. None: to the client that submits it."""
    retry: RetryPolicy | None = None
    """When it is tried again after it failed. None: a failure is the answer."""
    traceparent: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f-]*$")] = ""
    """W3C trace context, carried through to the answer."""

    def __init__(self, **fields: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(fields, self_instance=self)  # as BaseModel's own does
        except ValidationError as error:
            raise InvalidJobError(explain(error, "job")) from None


def explain(error: ValidationError, what: str) -> str:
    """One line for people: each field, and what is wrong with it, never the value itself."""
    lines = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in detail["loc"]) or what
        lines.append(f"{where}: {detail['msg']}")
    return f"invalid {what}: " + "; ".join(lines)


class SubmitOutcome(StrEnum):
    """What the SUBMIT script said of one job."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The id is known: the job waits, runs or has ended. It is not run again."""
    QUEUE_FULL = "queue_full"
    TENANT_FULL = "tenant_full"
    UNKNOWN_MODEL = "unknown_model"


class CancelOutcome(StrEnum):
    """What the CANCEL script said of one job."""

    CANCELLED = "cancelled"
    """It will never run; its terminal entry is written."""
    REQUESTED = "requested"
    """A router or a replica has it. It ends as `cancelled`, unless its answer is written first."""
    ENDED = "ended"
    """It had its terminal entry before."""
    UNKNOWN = "unknown"
    """No such job was submitted, or its retention is over."""


class Receipt(NamedTuple):
    """What the producer holds of a job it handed over."""

    model: str
    id: str
    inbox: str
    outcome: SubmitOutcome

    @property
    def accepted(self) -> bool:
        """Whether the job is the service's to finish, by this submission or an earlier one of its id."""
        return self.outcome in (SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE)

    @property
    def duplicate(self) -> bool:
        """Whether the id was known before."""
        return self.outcome is SubmitOutcome.DUPLICATE
