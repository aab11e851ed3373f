"""Which tests run in one process where `make test` starts whole clusters: those that share one.

pytest-xdist has `--dist loadgroup` for this, but its release 3.8 writes a group's name where pytest 9.2 does not look.
So its scheduler is told here.
"""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

__all__ = ["GroupScheduling", "group_of"]

_SHARED: Final = "tests/ray/shared_service"
_ALONE: Final = "tests/chaos/"
"""Each of these tests has a cluster of its own: they fill up what the long groups leave of a process's time."""


def group_of(nodeid: str) -> str:
    """What is run by one process, one test after the other: a folder, a file, or a test."""
    if nodeid.startswith(f"{_SHARED}/"):
        return _SHARED
    return nodeid if nodeid.startswith(_ALONE) else nodeid.partition("::")[0]


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out groups in the order in which tests are collected, if `--no-loadscope-reorder` is given."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
