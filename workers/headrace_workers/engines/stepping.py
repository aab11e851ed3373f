"""What a replica asks of an engine that generates: jobs join and leave between its steps, and end one by one.

Such an engine has the methods of any other, and those by which a replica drives it. All but `prepare` are called from
one thread, between two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from headrace_workers.engines.base import Engine, ItemError, Prepared

__all__ = ["GenerationEvent", "RunningGeneration", "StepEngine"]


class RunningGeneration(Protocol):
    """One job in the engine's hands."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        ...

    @property
    def error(self) -> ItemError | None:
        """Why it could not be answered, if so."""
        ...

    @property
    def tokens(self) -> int:
        """How much work it was so far: tokens of its prompt and of its answer."""
        ...

    def output(self) -> dict[str, Any]:
        """The answer of one that has ended: `choices` and `usage`, as docs/wire.md has them."""
        ...

    def partial(self) -> dict[str, Any]:
        """The same of one that was cancelled or has failed: as far as it got."""
        ...


class GenerationEvent(Protocol):
    """What a step brought for one job."""

    @property
    def generation(self) -> Any:
        """What `start` returned for the job."""
        ...

    @property
    def chunk(self) -> dict[str, Any] | None:
        """Tokens of one choice: `i`, `n`, `tokens`, `text` and, if asked for, `logprobs`; None if it failed."""
        ...

    @property
    def ended(self) -> bool:
        """Whether this is the last of the job."""
        ...


class StepEngine(Engine, Protocol):
    """An engine that generates. What it prepares has `streams`: whether the job's chunks are wanted as they come."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        ...

    def start(self, item: Prepared, *, job_id: str, delivered: Sequence[Mapping[str, Any]] = ()) -> Any:
        """Have a job take part from the next step on, behind the chunks that were delivered before.

        Returns a `RunningGeneration`, which may have ended already.

        Raises:
            ItemError: this job cannot be run.
        """
        ...

    def step(self) -> Sequence[GenerationEvent]:
        """Compute. Events of one job are in the order of its tokens."""
        ...

    def cancel(self, generation: Any, reason: Literal["cancelled", "deadline"] = "cancelled") -> None:
        """End a job now, and free its memory; harmless for one that has ended."""
        ...
