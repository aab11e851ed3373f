"""Redis users as `headrace acl` makes them, one of each profile, and what the server refused them."""

from __future__ import annotations

import hashlib
from typing import Final

import redis

from headrace.acl import PROFILES, set_user

__all__ = ["PASSWORD", "make_users", "refusals"]

PASSWORD: Final = "of-all-of-them"


def make_users(admin: redis.Redis, models: tuple[str, ...] = ()) -> None:
    """One of each profile, by the profile's name."""
    sha256 = hashlib.sha256(PASSWORD.encode()).hexdigest()
    for name, profile in PROFILES.items():
        words = set_user(profile, user=name, sha256=sha256, models=models).split()
        admin.execute_command(*words)  # type: ignore[no-untyped-call]


def refusals(admin: redis.Redis) -> list[str]:
    """What was refused, as `user: reason object`."""
    return sorted({f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in admin.acl_log()})
