"""How an attempt that failed ends its job: not yet, as an error, or as dead."""

from __future__ import annotations

from enum import Enum

from headrace.errors import DecodeError, FailureCode
from headrace.messages.envelope import Envelope
from headrace.messages.result import Status
from headrace.messages.retry import DEFAULT_RETRY, RetryPolicy

__all__ = ["Ending", "policy_of"]


class Ending(Enum):
    """The three ways."""

    AGAIN = "again"
    """Its policy wants another attempt."""
    ERROR = "error"
    """Its policy does not retry such a failure."""
    DEAD = "dead"
    """It does, and the attempts are used up: the job is kept as a dead letter."""

    @classmethod
    def of(cls, envelope: Envelope, code: FailureCode) -> Ending:
        """What follows when the attempt of this envelope has failed with `code`."""
        policy = policy_of(envelope)
        if policy.wants(code, envelope.attempt):
            return cls.AGAIN
        return cls.DEAD if code in policy.on else cls.ERROR

    @property
    def status(self) -> Status:
        """Of the terminal entry."""
        return Status.DEAD if self is Ending.DEAD else Status.ERROR


def policy_of(envelope: Envelope) -> RetryPolicy:
    """The job's retry policy; one that cannot be read is none."""
    try:
        return RetryPolicy.from_word(envelope.retry)
    except DecodeError:
        return DEFAULT_RETRY
