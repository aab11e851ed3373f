"""Python's garbage collector in a process of routers.

What a router holds of its jobs lives from one read to the end of a batch: longer, with many models, than the 700 new
objects after which Python looks at all new ones, and at all there are every so often. A hundred models that held twenty
thousand jobs paid 10 µs of CPU a job for that, which is a third of what a router does for it. So it looks later,
when most jobs have come and gone; and what stands when routing begins (modules, classes, the routers) it leaves alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

__all__ = ["settle"]

_NEW_OBJECTS: Final = 50_000
"""A look at as many takes some milliseconds."""


def settle() -> Callable[[], None]:
    """Have what there is stay, and new objects looked at rarely. Returns what undoes it."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])

    def undo() -> None:
        gc.set_threshold(*before)
        gc.unfreeze()

    return undo
