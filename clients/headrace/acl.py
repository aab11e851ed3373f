"""Who may do what to which keys: one profile for each kind of user, as rules of Redis's ACL.

Scripts act with the rights of whoever calls them, down to each command and key inside. So a profile is a list
of grants, each of some commands on some keys, and each becomes a selector (Redis 7.0): a producer may XADD to
lanes, and read its inbox, but neither write answers there nor read what lies in a lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace import scripts
from headrace.keys import MODELS, Keys, declared_keys, fsync_mark, keys_of
from headrace.scripts import Script

__all__ = ["HASH_PLACE", "PROFILES", "Grant", "Profile", "rules_of", "set_user"]

HASH_PLACE: Final = "PASSWORD_SHA256"
"""Stands where the hash of the password must: Redis refuses it, so that nobody forgets to replace it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Some commands on some keys."""

    keys: tuple[str, ...]
    commands: str
    """Names, separated by spaces; behind a `-` what is not granted of those before."""
    reading: bool = False
    """Whether the keys are only read."""

    @property
    def selector(self) -> str:
        """The grant as Redis takes it."""
        access = "%R~" if self.reading else "~"
        rules = [command if command[0] == "-" else f"+{command}" for command in self.commands.split()]
        return f"({' '.join([*(access + key for key in self.keys), *rules])})"


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of user needs."""

    name: str
    purpose: str
    scripts: tuple[Script, ...]
    """Those it calls."""
    commands: str
    """What it says that names no key."""
    grants: Callable[[Keys], Iterator[Grant]]
    """For the keys of one model, or of all where the model's name is `*`."""


_SINCE_7_2: Final = frozenset({"waitaof", "client|setinfo"})
_CONNECTION: Final = "ping select client|setinfo client|setname cluster|slots asking"
_CALLING: Final = "time script|load"


def _scripts_of(keys: Keys) -> Grant:
    return Grant(declared_keys(keys.prefix), "evalsha")


def _lanes(keys: Keys) -> str:
    return keys.lanes[0].removesuffix("0") + "*"


def _producer(keys: Keys) -> Iterator[Grant]:
    yield _scripts_of(keys)
    yield Grant((keys.meta,), "hget hmget", reading=True)
    yield Grant((_lanes(keys),), "xadd xdel xlen xpending")
    yield Grant((keys.tenants, keys.parts), "hget hlen hset hdel hincrby")
    yield Grant((keys.counters,), "hincrby hgetall")
    yield Grant((keys.record("*"),), "get mget set")
    yield Grant((keys.inbox("*"),), "xread xrange xrevrange xadd xdel xtrim pexpire")
    yield Grant((keys.delayed,), "zcard zrem")
    yield Grant((keys.delayed_job("*"), keys.chunks("*")), "del")
    yield Grant((keys.cancels,), "xadd pexpire")
    yield Grant((keys.dead_letters,), "xlen", reading=True)
    yield Grant((fsync_mark(keys.prefix),), "set")
    yield Grant((MODELS,), "smembers", reading=True)


def _consumer(keys: Keys) -> Iterator[Grant]:
    yield Grant((keys.inbox("*"),), "xread xrange xrevrange xtrim")
    yield Grant((keys.meta,), "hmget", reading=True)
    yield Grant((keys.record("*"),), "get", reading=True)
    yield Grant((_lanes(keys),), "xpending", reading=True)
    yield Grant((MODELS,), "smembers", reading=True)


def _worker(keys: Keys) -> Iterator[Grant]:
    yield _scripts_of(keys)
    yield Grant((keys.meta,), "hget hmget hset hdel")
    yield Grant(
        (_lanes(keys),),
        "xgroup|create xgroup|delconsumer xreadgroup xpending xclaim xack xrange xadd xdel xlen xinfo|consumers",
    )
    yield Grant((keys.tenants, keys.parts), "hdel hincrby")
    yield Grant((keys.counters,), "hincrby hmget")
    yield Grant((keys.record("*"),), "get set")
    yield Grant((keys.inbox("*"),), "xadd xtrim pexpire")
    yield Grant((keys.delayed,), "zadd zrem zrangebyscore exists")
    yield Grant((keys.delayed_job("*"),), "hset hmget del")
    yield Grant((keys.chunks("*"),), "lindex llen lrange lset rpush del")
    yield Grant((keys.cancels,), "xrange xread xrevrange exists", reading=True)
    yield Grant((keys.dead_letters,), "xadd")
    yield Grant((keys.heartbeat("*"),), "set exists del")
    yield Grant((keys.pools,), "hget hgetall hset hdel")
    yield Grant((keys.generation,), "hmget hset")
    yield Grant((MODELS,), "sadd")


def _monitor(keys: Keys) -> Iterator[Grant]:
    yield _scripts_of(keys)
    yield Grant((keys.meta, keys.counters, keys.tenants, keys.pools), "hgetall hmget", reading=True)
    yield Grant((_lanes(keys),), "xlen xpending xinfo|stream xinfo|groups xinfo|consumers", reading=True)
    yield Grant((keys.delayed,), "zcard", reading=True)
    yield Grant((keys.dead_letters,), "xlen", reading=True)
    yield Grant((keys.record("*"),), "get", reading=True)
    yield Grant((keys.heartbeat("*"),), "exists", reading=True)
    yield Grant((MODELS,), "smembers", reading=True)


def _admin(keys: Keys) -> Iterator[Grant]:
    yield Grant((keys.prefix + "*", MODELS), "@read @write evalsha -@dangerous")


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile(
            "producer",
            "hands jobs over, reads its answers, cancels",
            (scripts.SUBMIT, scripts.CANCEL, scripts.AUDIT),
            f"{_CONNECTION} {_CALLING} waitaof",
            _producer,
        ),
        Profile("consumer", "reads inboxes whose names it was told, and trims them", (), _CONNECTION, _consumer),
        Profile(
            "worker",
            "routers and replicas",
            (
                scripts.START,
                scripts.CHUNK,
                scripts.COMPLETE,
                scripts.RETRY,
                scripts.SWEEP,
                scripts.REAP,
                scripts.RELEASE,
                scripts.BLAME,
                scripts.LEAD,
                scripts.BACKLOG,
                scripts.DUE,
            ),
            f"{_CONNECTION} {_CALLING} info",
            _worker,
        ),
        Profile(
            "monitor",
            "looks at counts and states, never at what is in a job",
            (scripts.AUDIT,),
            f"{_CONNECTION} {_CALLING} info latency|histogram latency|latest",
            _monitor,
        ),
        Profile(
            "admin",
            "replays and drops dead letters, and finds out what is wrong",
            scripts.ALL,
            f"{_CONNECTION} {_CALLING} script|exists waitaof info config|get acl|whoami acl|list acl|getuser acl|log "
            "acl|dryrun client|list slowlog|get latency|histogram latency|latest memory|stats dbsize scan",
            _admin,
        ),
    )
}
"""By name. Nobody gets KEYS, FLUSHALL, CONFIG SET, DEBUG, MODULE, MIGRATE, RESTORE, REPLICAOF or SHUTDOWN."""


def rules_of(profile: Profile, models: Sequence[str] = (), *, since_7_2: bool = True) -> list[str]:
    """The ACL rules of a profile, behind name and password.

    Args:
        profile: whose.
        models: whose keys; all there are, if none is named.
        since_7_2: whether the server is Redis 7.2, Valkey 7.2 or newer: an older one refuses rules on commands that
            it does not know.
    """
    commands = [command for command in profile.commands.split() if since_7_2 or command not in _SINCE_7_2]
    rules = [f"+{command}" for command in commands]
    for model in models or ("*",):
        for grant in profile.grants(keys_of(model)):
            if grant.selector not in rules:
                rules.append(grant.selector)
    return rules


def set_user(profile: Profile, rules: Sequence[str], *, user: str | None = None, sha256: str = HASH_PLACE) -> str:
    """The command that makes a user of a profile, whatever he might do before."""
    return " ".join(["ACL SETUSER", user or f"headrace-{profile.name}", "reset", "on", f"#{sha256}", *rules])
