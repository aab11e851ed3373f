"""The chaos engine inside a replica of the real Serve application, which names it in its configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.engine import ChaosEngine
from chaos.history import History
from headrace_workers.engines.base import ItemError, Prepared

__all__ = ["ServedEngine"]


class ServedEngine(ChaosEngine):
    """Says itself what a replica's process says elsewhere: there is no seam to listen at in an actor.

    Args:
        directory: of the whole run.
        batch_s: what a batch takes at least.
    """

    def __init__(self, directory: str, batch_s: float) -> None:
        self._said = History(Path(directory) / "histories", f"replica-{os.getpid()}")
        super().__init__(self._said, Path(directory) / "scratch", batch_s=batch_s)

    def prepare(self, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
        """A batch has come in."""
        self._said.note("batch", jobs=[(job, 1, 0) for job, _ in requests])
        return super().prepare(requests)

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Run it, and count it as answered."""
        outputs = super().run(items)
        self._said.note("finish", answered=len(outputs), late=0)
        return outputs
