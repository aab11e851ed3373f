"""How long OpenMP's threads spin before they sleep: shortly, for they are not alone on their cores.

Threads that share a kernel wait for each other many times a millisecond. libgomp has those that wait spin for tens of
milliseconds by default. Where anything else wants a core meanwhile – the router beside a replica, Redis, Ray – the
thread that lost its core cannot have that of the one that waits for it, and a few per cent of other work halve the
speed. One that sleeps gives way at once. The package's first import, for libgomp reads it as it is loaded, with torch.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["SPINS", "spin_shortly"]

SPINS: Final = 10_000
"""About 0.5 ms: longer than a pass waits for the next one, and shorter than a turn on a core. Within a pass the threads
of a decoder wait for each other in a way of their own (`kernels/native/meeting.h`)."""


def spin_shortly() -> None:
    """Say so to a libgomp that is not loaded yet, unless the user has said something else."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


spin_shortly()
