"""An engine that tells who answered: which release of the code, in which pod, in which process."""

from __future__ import annotations

import socket
from typing import Any, ClassVar

from support.engines import FragileEngine

__all__ = ["TellingEngine"]


class TellingEngine(FragileEngine):
    """Does what its jobs ask for, as `FragileEngine`; a release of it is a subclass with a name of its own."""

    release: ClassVar[str] = "first"

    def _answer(self, wish: str) -> Any:
        pid = super()._answer(wish)
        return pid if not isinstance(pid, int) else [self.release, socket.gethostname(), pid]
