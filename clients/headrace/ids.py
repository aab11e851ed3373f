"""Names that headrace gives: job ids that sort by time, and inbox names that nobody can guess."""

from __future__ import annotations

import random
import re
import secrets
import time
from typing import Final

__all__ = ["MODEL_PATTERN", "NAME_PATTERN", "new_inbox", "new_job_id", "new_token"]

NAME_PATTERN: Final = r"^[A-Za-z0-9._:-]{1,64}$"
"""Job ids, inboxes and tenants become parts of key names: no braces, no space, no control character."""

MODEL_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}(#[0-9]{1,3})?$"
"""Model names; `#k` names one shard of a model spread over several slots."""

_NAME = re.compile(NAME_PATTERN)

_VERSION_7: Final = 7 << 76 | 0b10 << 62
_RANDOM: Final = ~(0b11 << 62)
"""The bits of a UUID that say which kind it is, and all others."""


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits."""
    # The generator is seeded by the system and again in every forked child; ids are unique, not secret.
    digits = "%032x" % (time.time_ns() // 1_000_000 << 80 | _VERSION_7 | random.getrandbits(76) & _RANDOM)
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_inbox() -> str:
    """128 random bits: whoever was not told the name cannot read the answers."""
    return secrets.token_hex(16)


def new_token() -> str:
    """Marks one SUBMIT call, so that its replay is told from somebody else's duplicate."""
    return secrets.token_hex(4)


def is_name(text: str) -> bool:
    """Whether `text` may stand as a job id, an inbox or a tenant."""
    return _NAME.fullmatch(text) is not None
