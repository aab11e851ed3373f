"""A job that a replica generates: where it came from, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.messages import Envelope, LaneEntry, Status
from headrace.messages.chunk import Chunk, partial_output
from headrace.scripts import Answer, GiveBack
from headrace_workers.engines.base import ItemError, Prepared
from headrace_workers.generation.batch_call import BatchCall
from headrace_workers.replicas.batch_jobs import answer_of, failure_of

if TYPE_CHECKING:
    from headrace_workers.generation.decode_loop import DecodeLoop

__all__ = ["ServedJob"]


@dataclass(slots=True, eq=False)
class ServedJob:
    """One job of one call. Times are of the Redis server's clock, in seconds."""

    call: BatchCall
    number: int
    """Its place in the call's batch."""
    model: str
    """Its name there, which is a shard's where the model has shards."""
    entry: LaneEntry
    envelope: Envelope
    owner: str
    """As whom it was started."""
    loop: DecodeLoop
    """Has it run."""
    variant: str
    """Of the engine that runs it."""
    item: Prepared | None = None
    error: ItemError | None = None
    delivered: Sequence[Chunk] = ()
    """Its chunks that others wrote, in order."""
    written: int = 0
    """How many chunks it has in Redis, others' included, or will have once those on their way are there."""
    cancelled: bool = False
    """Whether somebody has called it off."""
    dropped: bool = False
    """Whether it is no more ours: nothing is written of it from then on."""
    generation: Any = None
    """The engine's, once it has started; the decode thread's alone."""
    output: dict[str, Any] | None = None
    """When it has ended: the answer, or, beside an error, what there is of it."""
    tokens: int = 0
    started_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    pieces: list[dict[str, Any]] = field(default_factory=list)
    """Chunks that are yet to be written."""

    @property
    def key(self) -> tuple[str, str]:
        """By what it is found: the model's name and its own."""
        return self.model, self.envelope.job_id

    @property
    def dispatched_ms(self) -> int:
        """When its router sent it, which an owner begins with."""
        return int(self.owner.partition("-")[0])

    @property
    def streams(self) -> bool:
        """Whether its chunks are wanted as they come."""
        return self.item is not None and bool(self.item.data.streams)

    def delivered_output(self, reason: str) -> dict[str, Any] | None:
        """What others delivered of it, as the output of one that goes no further; None if that is nothing."""
        prompt_tokens = self.item.tokens if self.item else 0
        return partial_output(self.delivered, reason, prompt_tokens=prompt_tokens)

    def ending(self) -> Answer | GiveBack:
        """How it ends; to be asked once every chunk of it is written."""
        owner = self.owner if self.streams else ""
        if self.output is not None:
            self.output["timings"] = self._timings()
        body = self.error or answer_of(
            self.output,
            input_tokens=self.item.tokens if self.item else 0,
            queued_ms=self._since_submission_ms(self.started_s),
            run_ms=max(0.0, (self.ended_s - self.started_s) * 1000),
            variant=self.variant,
        )
        if isinstance(body, ItemError):
            return failure_of(self.entry, self.envelope, body, partial=self.output, owner=owner)
        entry = self.entry
        return Answer(entry.lane, entry.entry_id, entry.text, Status.OK, body, owner)

    def _timings(self) -> dict[str, float]:
        """Since its submission, in ms: until this replica began, drew the first token, and was done."""
        timings = {"queued_ms": self.started_s, "first_token_ms": self.first_token_s, "total_ms": self.ended_s}
        return {name: self._since_submission_ms(moment_s) for name, moment_s in timings.items() if moment_s}

    def _since_submission_ms(self, moment_s: float) -> float:
        return round(max(0.0, moment_s * 1000 - self.envelope.submitted_ms), 3)
