"""An engine that tells which pod it ran in, after the time that a job asks for."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from headrace_workers.engines.base import Prepared
from support.engines import FragileEngine

__all__ = ["PlaceEngine"]


class PlaceEngine(FragileEngine):
    """Answers with the name of its host, which in a pod is the pod's."""

    def run(self, items: Sequence[Prepared]) -> list[Any]:
        """Take the time of every job, as a model would."""
        super().run(items)
        return [socket.gethostname()] * len(items)
