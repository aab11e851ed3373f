"""`headrace acl`: commands that a server takes as they are printed."""

from __future__ import annotations

import hashlib

import pytest
import redis

from headrace.acl import PROFILES
from headrace.cli.output import Exit
from support.command_line import Run
from support.users import is_since_7_2

PASSWORD = "tr0ub4dor"
SHA256 = hashlib.sha256(PASSWORD.encode()).hexdigest()


async def test_every_line_makes_a_user(headrace: Run, redis_url: str) -> None:
    """All profiles, if none is named."""
    with redis.Redis.from_url(redis_url) as admin:
        older = () if is_since_7_2(admin) else ("--redis-7.0",)
        ran = await headrace("acl", "--sha256", SHA256, *older)
        assert (ran.status, ran.err) == (Exit.DONE, "")
        names = [line.split()[2] for line in ran.out.splitlines()]
        assert names == [f"headrace-{name}" for name in PROFILES]
        try:
            for line in ran.out.splitlines():
                admin.execute_command(*line.split())
            for name in names:
                with redis.Redis.from_url(redis_url, username=name, password=PASSWORD) as client:
                    assert client.ping()
        finally:
            admin.acl_deluser(*names)


async def test_a_password_that_was_forgotten(headrace: Run, redis_url: str) -> None:
    """The placeholder is told on stderr, and Redis refuses it."""
    ran = await headrace("acl", "monitor")
    assert "replace PASSWORD_SHA256" in ran.err
    with redis.Redis.from_url(redis_url) as admin, pytest.raises(redis.ResponseError, match="PASSWORD_SHA256"):
        admin.execute_command(*ran.out.split())


async def test_an_older_server(headrace: Run) -> None:
    """Redis 7.0 refuses rules on commands that came later."""
    assert "waitaof" in (await headrace("acl", "producer")).out
    ran = await headrace("acl", "--redis-7.0")
    assert not [word for word in ("waitaof", "setinfo") if word in ran.out]


async def test_one_user_for_two_models(headrace: Run) -> None:
    """By a name of its own, for programs, too."""
    ran = await headrace("acl", "producer", "--user", "orders", "--model", "one", "--model", "two#3", "--json")
    [user] = ran.last["users"]
    assert (user["profile"], user["user"]) == ("producer", "orders")
    assert user["command"].startswith("ACL SETUSER orders reset on #PASSWORD_SHA256 ")
    assert [rule for rule in user["rules"] if "hr:{one}:q:*" in rule]
    assert [rule for rule in user["rules"] if "hr:{two#3}:q:*" in rule]
    assert "*}" not in user["command"]
    assert ran.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["root"], "'root' is none of producer, consumer, worker, monitor, admin"),
        (["worker", "--model", "a b"], "'a b' cannot be the name of a model"),
        (["worker", "--model", "{x}"], "cannot be the name of a model"),
        (["worker", "consumer", "--user", "x"], "is one user's name, for one profile"),
        (["worker", "--user", "a b"], "is one user's name"),
        (["worker", "--sha256", PASSWORD], "is not 64 hexadecimal digits; give the hash, never the password"),
    ],
)
async def test_wrong_usage(headrace: Run, arguments: list[str], says: str) -> None:
    """Told, without repeating what may be a password."""
    ran = await headrace("acl", *arguments)
    assert ran.status == Exit.USAGE
    assert says in ran.err
    assert PASSWORD not in ran.err + ran.out
