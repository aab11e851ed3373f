"""What every stage is given, and what it gives back.

A stage is a function ``(subject, stage, context) -> Subject``: `distill`, `prune_structured`, `prune`, `recover` and
`quantize`, each in a module of its own. It may change the subject it is given, which nobody else holds. It tells what
it did and did not gain in `context.note`, and how far it is in `context.progress`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from headrace_workers.compression.data import Split
from headrace_workers.compression.subject import Subject

__all__ = ["StageContext"]


def _say_nothing(_what: str, _share: float) -> None:
    return


@dataclass
class StageContext:
    """What a stage works with besides the model."""

    original: Subject
    """The model as it came, never changed: the teacher, and what everything is compared with."""
    data: Split
    seed: int = 0
    progress: Callable[[str, float], None] = _say_nothing
    """Takes what is being done, and the share of it that is done."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing of this stage: the worst layer, what gained nothing."""

    def note(self, text: str) -> None:
        """Say something for the report."""
        self.notes.append(text)
