"""What a replica asks of an engine.

A batch passes through in two steps, so that the next batch is prepared while this one runs: `prepare` on
any thread (validate, tokenize), `run` on the one compute thread. Both give a value or an `ItemError` for
each job, in order: a bad job never costs its batch mates anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from headrace.errors import FailureCode

__all__ = ["Engine", "EngineInfo", "ItemError", "Prepared"]


class ItemError(Exception):
    """This job cannot be answered; its batch mates can.

    Args:
        code: what its producer's program is told.
        message: what was wrong, for people; never the input itself.
        hint: what would be right.
        retryable: whether the very same job may fare better another time.
    """

    def __init__(self, code: FailureCode, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable


class Prepared(NamedTuple):
    """A job that is ready to run."""

    tokens: int
    """How much work it is, in the engine's unit (tokens, where it has them)."""
    data: Any
    """The engine's own: what `run` needs of it."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself, for logs, `headrace check` and the answers' `variant`."""

    variant: str
    task: str
    device: str
    load_s: float
    details: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Runs jobs on one model. Constructed, and then used, in the process of one replica."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        ...

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """Validate and prepare jobs, each an (input, params). Called from any thread, concurrently with `run`."""
        ...

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Run prepared jobs together: for each a `Tensor`, plain data, or an `ItemError`.

        Called from one thread at a time. An exception is a fault of the whole batch.
        """
        ...

    def example(self) -> tuple[Any, dict[str, Any]]:
        """An (input, params) that this engine answers, for `headrace check` and warm-up."""
        ...
