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


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits."""
    # The generator is seeded by the system and again in every forked child; ids are unique, not secret.
    now_ms, bits = time.time_ns() // 1_000_000, random.getrandbits(74)
    variant = 0x8000 | bits >> 48 & 0x3FFF
    head = f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}-7{bits >> 62:03x}"
    return f"{head}-{variant:04x}-{bits & 0xFFFFFFFFFFFF:012x}"


def new_inbox() -> str:
    """128 random bits: whoever was not told the name cannot read the answers."""
    return secrets.token_hex(16)


def new_token() -> str:
    """Marks one SUBMIT call, so that its replay is told from somebody else's duplicate."""
    return secrets.token_hex(4)


def is_name(text: str) -> bool:
    """Whether `text` may stand as a job id, an inbox or a tenant."""
    return _NAME.fullmatch(text) is not None
