"""Builds that are broken on purpose, for the checker to find out: what it has never caught, it cannot see.

Only the processes of a chaos run look at the variable `HEADRACE_CHAOS_SABOTAGE`; each sabotage is a small
patch to a script's text or to a class, made before the process does anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace import scripts
from headrace.scripts import Script

__all__ = ["SABOTAGES", "VARIABLE", "apply", "hashes"]

VARIABLE: Final = "HEADRACE_CHAOS_SABOTAGE"


@dataclass(frozen=True)
class Patch:
    """A script with one piece of its text replaced."""

    script: Script
    old: str
    new: str

    @property
    def text(self) -> str:
        """The broken script."""
        if self.old not in self.script.text:
            raise ValueError(f"{self.script.name}.lua has changed: {self.old!r} is not in it")
        return self.script.text.replace(self.old, self.new)

    @property
    def sha(self) -> str:
        """Its hash."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self) -> None:
        """Break the script in this process."""
        self.script.text, self.script.sha = self.text, self.sha


def _acknowledge_first() -> None:
    """Reads acknowledge: nothing is pending, so nothing is taken over from the dead."""
    from headrace_cluster.router import lane_reads

    original = vars(lane_reads)["execute"]

    async def without_pending(client: Any, *words: bytes | str | int) -> Any:
        at = words.index("COUNT")
        return await original(client, *words[:at], "NOACK", *words[at:])

    vars(lane_reads)["execute"] = without_pending


SABOTAGES: Final[Mapping[str, Callable[[], None]]] = {
    "acknowledge_first": _acknowledge_first,
    "no_fence": Patch(scripts.COMPLETE, "codes[n] = redis.call('XDEL', lane, ARGV[n * 5 - 3])", "codes[n] = 1"),
    "trimmed_lane": Patch(
        scripts.SUBMIT, "redis.call('XADD', stream, '*',", "redis.call('XADD', stream, 'MAXLEN', 40, '*',"
    ),
    "forgotten_tenant": Patch(
        scripts.COMPLETE, "if redis.call('HINCRBY', prefix .. 'ten', tenant, -count) <= 0 then", "if false then"
    ),
    "eternal_records": Patch(
        scripts.COMPLETE, "finished .. envelope,\n      'PX', retention)", "finished .. envelope)"
    ),
    "lying_cancel": Patch(scripts.CANCEL, "return request(id, record, state, rest)", "return 1"),
    "robbed_living": Patch(scripts.REAP, "redis.call('EXISTS', prefix .. 'hb:' .. name) == 0", "true"),
    "forgetful_start": Patch(
        scripts.START,
        "redis.call('LSET', list, 0, owner)",
        "redis.call('DEL', list) redis.call('RPUSH', list, owner)",
    ),
    "unfenced_chunk": Patch(
        scripts.CHUNK,
        "if owned ~= owner then return 0 end\n  local there = redis.call('LLEN', list) - 1\n  if there == before then",
        "if owned then",
    ),
    "lost_tail": lambda: None,  # it is the server that is broken: `faults.Tormentor` cuts what was not synced
}
"""By name: COMPLETE without the fence, and so on."""


def apply() -> None:
    """Break this process as its environment says."""
    if name := os.environ.get(VARIABLE):
        SABOTAGES[name]()


def hashes(broken: str) -> Mapping[str, str]:
    """The hash of every script, by its name, in a run with this sabotage."""
    found = {script.name: script.sha for script in vars(scripts).values() if isinstance(script, Script)}
    patch = SABOTAGES.get(broken)
    return found | {patch.script.name: patch.sha} if isinstance(patch, Patch) else found
