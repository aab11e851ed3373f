"""How a job that failed is tried again: the producer's say, carried in the envelope as one word.

The word is ``<attempts>,<backoff ms>,<longest backoff ms>,<code>+<code>...``, or ``-`` for `DEFAULT_RETRY`.
"""

from __future__ import annotations

import random
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import DecodeError, FailureCode, InvalidJobError

__all__ = ["DEFAULT_RETRY", "RetryPolicy"]


class RetryPolicy(BaseModel):
    """When and how often a job runs again after it failed.

    A job whose attempts are used up is answered as `dead` and kept as a dead letter. Failures that are not in
    `on` end it at once as `error`. The death of a replica is no failure of the jobs that were on it: they run
    again at once, which counts as no attempt, unless a job is found to be what kills replicas.

    Raises:
        InvalidJobError: naming the field, and what was wrong with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """How often it is run at most, the first time included."""
    backoff_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 1.0
    """How long before the second attempt at most; it doubles with each further one. Half of it is left to chance."""
    longest_backoff_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60.0
    """What it does not grow beyond."""
    on: frozenset[FailureCode] = frozenset({FailureCode.ENGINE_FAILED, FailureCode.POOL_FAILED})
    """After which failures."""

    def __init__(self, **fields: object) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
            raise InvalidJobError(f"invalid retry policy: {wrong}") from None

    def delay_ms(self, attempt: int) -> int:
        """Milliseconds from the failure of `attempt` (from 1) until the next begins: half of it is left to chance."""
        longest_s = min(self.longest_backoff_s, self.backoff_s * 2.0 ** min(attempt - 1, 64))
        return int(1000 * longest_s * random.uniform(0.5, 1.0))

    def wants(self, code: FailureCode, attempt: int) -> bool:
        """Whether another attempt follows after `attempt` failed in this way."""
        return code in self.on and attempt < self.attempts

    def to_word(self) -> str:
        """The envelope's word."""
        codes = "+".join(sorted(self.on)) or "none"
        return f"{self.attempts},{int(self.backoff_s * 1000)},{int(self.longest_backoff_s * 1000)},{codes}"

    @classmethod
    def from_word(cls, word: str) -> Self | RetryPolicy:
        """Read the envelope's word. Codes of a newer client's that this service does not know are left out.

        Raises:
            DecodeError: it is none.
        """
        if word == "-":
            return DEFAULT_RETRY
        try:
            attempts, backoff, longest, codes = word.split(",")
            known = frozenset(code for code in FailureCode if code in codes.split("+"))
            return cls(
                attempts=int(attempts), backoff_s=int(backoff) / 1000, longest_backoff_s=int(longest) / 1000, on=known
            )
        except (ValueError, OverflowError) as error:
            raise DecodeError(f"not a retry policy: {word[:100]!r}: {error}") from None


DEFAULT_RETRY: Final = RetryPolicy(attempts=1, on=frozenset())
"""Where the producer says nothing: a failure is the answer."""
