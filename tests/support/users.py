"""Redis users as `headrace acl` makes them, one of each profile, and what the server refused them."""

from __future__ import annotations

import hashlib
from typing import Final

import redis

from headrace.acl import PROFILES, rules_of, set_user

__all__ = ["PASSWORD", "is_since_7_2", "make_users", "refusals"]

PASSWORD: Final = "of-all-of-them"


def make_users(admin: redis.Redis, models: tuple[str, ...] = ()) -> None:
    """One of each profile, by the profile's name."""
    sha256 = hashlib.sha256(PASSWORD.encode()).hexdigest()
    for name, profile in PROFILES.items():
        rules = rules_of(profile, models, since_7_2=is_since_7_2(admin))
        admin.execute_command(*set_user(profile, rules, user=name, sha256=sha256).split())  # type: ignore[no-untyped-call]


def is_since_7_2(admin: redis.Redis) -> bool:
    """Whether the server knows the commands of Redis 7.2."""
    return bool(admin.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "waitaof"))  # type: ignore[no-untyped-call]


def refusals(admin: redis.Redis) -> list[str]:
    """What was refused, as `user: reason object`."""
    return sorted({f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in admin.acl_log()})
