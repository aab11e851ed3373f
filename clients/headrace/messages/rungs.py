"""The variants between which a pool may choose, as its replicas tell whoever decides: what each one costs and brings.

They stand in the hash `Keys.pools` of their model: `rungs@<pool>`, which the pool's replicas write when they start, and
`variant@<pool>`, the one that they shall run, which they follow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from headrace.errors import DecodeError

__all__ = ["Rung", "pack_rungs", "rungs_field", "unpack_rungs", "variant_field"]

_MOST: Final = 64
_MOST_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Rung:
    """A variant of a model, against the first of those that its pool may run."""

    variant: str
    quality: float
    """What it keeps of the first one's quality: 1 is as good."""
    speed: float
    """Times as fast as the first one."""


def rungs_field(pool: str) -> str:
    """Where a pool's rungs stand, by the pool's name."""
    return f"rungs@{pool}"


def variant_field(pool: str) -> str:
    """Where the name of the variant stands that a pool's replicas shall run."""
    return f"variant@{pool}"


def pack_rungs(rungs: Sequence[Rung]) -> bytes:
    """Rungs, best quality first, as they stand in the hash."""
    return json.dumps([asdict(rung) for rung in rungs]).encode()


def unpack_rungs(packed: bytes) -> tuple[Rung, ...]:
    """The rungs of a pool.

    Raises:
        DecodeError: that is not what `pack_rungs` writes.
    """
    if len(packed) > _MOST_BYTES:
        raise DecodeError(f"has {len(packed):,} bytes, which is more than rungs can have")
    try:
        rungs = tuple(
            Rung(str(row["variant"]), float(row["quality"]), float(row["speed"])) for row in json.loads(packed)
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DecodeError(f"holds no rungs: {type(error).__name__}") from None
    sound = all(math.isfinite(rung.quality) and math.isfinite(rung.speed) and rung.speed > 0 for rung in rungs)
    if not sound or not 0 < len(rungs) <= _MOST:
        raise DecodeError("holds no rungs: a figure is none")
    return rungs
