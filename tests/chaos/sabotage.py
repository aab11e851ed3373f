"""Builds that are broken on purpose, for the checker to find out: what it has never caught, it cannot see.

Only the processes of a chaos run look at the variable `HEADRACE_CHAOS_SABOTAGE`; each sabotage is a small
patch to a script's text or to a class, made before the process does anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from headrace import scripts
from headrace.scripts import Script

__all__ = ["SABOTAGES", "VARIABLE", "apply"]

VARIABLE: Final = "HEADRACE_CHAOS_SABOTAGE"


def apply() -> None:
    """Break this process as its environment says."""
    if name := os.environ.get(VARIABLE):
        SABOTAGES[name]()


def _patch(script: Script, old: str, new: str) -> None:
    if old not in script.text:
        raise ValueError(f"{script.name}.lua has changed: {old!r} is not in it")
    script.text = script.text.replace(old, new)
    script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


def _acknowledge_first() -> None:
    """Reads acknowledge: nothing is pending, so nothing is taken over from the dead."""
    from headrace_cluster import lane_reader

    original = vars(lane_reader)["execute"]

    async def without_pending(client: Any, *words: bytes | str | int) -> Any:
        at = words.index("COUNT")
        return await original(client, *words[:at], "NOACK", *words[at:])

    vars(lane_reader)["execute"] = without_pending


def _no_fence() -> None:
    """COMPLETE writes an answer whether or not it was the one to acknowledge."""
    _patch(scripts.COMPLETE, "codes[n] = redis.call('XDEL', lane, ARGV[n * 5 - 3])", "codes[n] = 1")


def _trimmed_lane() -> None:
    """SUBMIT keeps the lane short by throwing old jobs away."""
    _patch(scripts.SUBMIT, "redis.call('XADD', stream, '*',", "redis.call('XADD', stream, 'MAXLEN', 40, '*',")


def _forgotten_tenant() -> None:
    """COMPLETE does not count a tenant's jobs down."""
    _patch(scripts.COMPLETE, "redis.call('HINCRBY', prefix .. 'ten', tenant, -count) <= 0", "false")


SABOTAGES: Final[Mapping[str, Callable[[], None]]] = {
    "acknowledge_first": _acknowledge_first,
    "no_fence": _no_fence,
    "trimmed_lane": _trimmed_lane,
    "forgotten_tenant": _forgotten_tenant,
}
