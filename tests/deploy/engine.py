"""An engine that tells which pod it ran in, after the time that a job asks for, and what it has in hand."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace_workers.engines.base import Prepared
from support.engines import FragileEngine

__all__ = ["PlaceEngine"]


class PlaceEngine(FragileEngine):
    """Answers with the name of its host, which in a pod is the pod's. A wish may be numbered: `sleep:0.02 #17`.

    Args:
        held: the file in which the inputs stand, as JSON, while they are run; between two batches it is empty.
    """

    def __init__(self, held: str | None = None) -> None:
        super().__init__()
        self._held = Path(held) if held else None

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Take the time of every job, as a model would. Nothing that stands in the file is answered yet."""
        self._tell([item.data for item in items])
        super().run([item._replace(data=str(item.data).partition(" #")[0]) for item in items])
        self._tell([])
        return [socket.gethostname()] * len(items)

    def _tell(self, inputs: list[Any]) -> None:
        if self._held:
            self._held.write_text(json.dumps(inputs) if inputs else "")
