"""Which servers have known holes that matter to whoever may run scripts and blocking reads on them.

A release of a branch that is older than the one with the fix has the hole; so does a branch that never got
it. Distributions fix old releases without changing their number, so this is worth a warning and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["ADVISORIES", "Advisory", "advisories_for"]

Branch = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Advisory:
    """Holes that were closed together."""

    names: str
    what: str
    fixed: Mapping[str, Mapping[Branch, int]]
    """For each kind of server and branch, the first patch release with the fix."""

    def applies_to(self, kind: str, version: tuple[int, int, int]) -> bool:
        """Whether a server of this kind and version has the holes."""
        fixed = self.fixed[kind]
        branch = version[:2]
        if branch in fixed:
            return version[2] < fixed[branch]
        return branch < max(fixed)


ADVISORIES: Final = (
    Advisory(
        "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818, CVE-2025-46819",
        "whoever may run scripts can run code on the server",
        {
            "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
            "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
        },
    ),
    Advisory(
        "CVE-2026-23479, CVE-2026-23631, CVE-2026-25243",
        "blocking reads, scripts and RESTORE can run code on the server",
        {
            "redis": {(7, 4): 9, (8, 2): 6, (8, 4): 3, (8, 6): 3},
            "valkey": {(7, 2): 13, (8, 0): 8, (8, 1): 7, (9, 0): 4},
        },
    ),
    Advisory(
        "the security releases of July 2026, CVE-2026-63639 and CVE-2026-56684 among them",
        "damaged stream data and CLIENT KILL can run code on the server",
        {
            "redis": {(6, 2): 23, (7, 2): 15, (7, 4): 10, (8, 2): 8, (8, 4): 5, (8, 6): 5, (8, 8): 1},
            "valkey": {(7, 2): 14, (8, 0): 10, (8, 1): 9, (9, 0): 5, (9, 1): 1},
        },
    ),
)
"""From the release notes of Redis and Valkey, as of September 2026."""


def advisories_for(kind: str, version: tuple[int, int, int]) -> list[Advisory]:
    """The advisories that apply to a server, oldest first."""
    return [advisory for advisory in ADVISORIES if advisory.applies_to(kind, version)]
