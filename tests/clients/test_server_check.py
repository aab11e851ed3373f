"""Which servers fit: judged from what they say of themselves, and asked of real ones that were set up wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import redis

from headrace.errors import (
    RedisDurabilityError,
    RedisEvictionError,
    RedisRoleError,
    RedisSetupError,
    RedisUnavailableError,
    RedisVersionError,
)
from headrace.server.check import Durability, Finding, check_server, judge
from headrace.server.facts import ServerFacts
from headrace_cluster.embedded import EmbeddedServer
from support.leaks import holdings

FIT = ServerFacts(kind="valkey", version=(9, 9, 0), fsync="everysec")


@contextmanager
def a_server(**options: str) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(die_with_parent=True, options={name.replace("_", "-"): v for name, v in options.items()}) as it:
        yield it


# -- judged ---------------------------------------------------------------------------------------------------------


def test_a_server_that_fits() -> None:
    """Nothing to say."""
    assert judge(FIT) == judge(FIT, durability="everysec") == []


@pytest.mark.parametrize(
    ("facts", "error", "fatal", "says"),
    [
        (replace(FIT, kind="redis", version=(6, 2, 14)), RedisVersionError, True, "redis 6.2.14; headrace needs redis"),
        (replace(FIT, version=(7, 1, 9)), RedisVersionError, True, "valkey 7.2 or newer"),
        (replace(FIT, version=(0, 0, 0)), RedisVersionError, False, "does not tell its version"),
        (replace(FIT, role="slave"), RedisRoleError, True, "is a replica and takes no writes; name its master"),
        (replace(FIT, mode="sentinel", append_only=False), RedisRoleError, True, r"redis\+sentinel://"),
        (replace(FIT, policy="allkeys-lru"), RedisEvictionError, False, "as soon as maxmemory is set"),
        (
            replace(FIT, policy="volatile-ttl", memory_limit_bytes=1 << 30),
            RedisEvictionError,
            True,
            r"\(volatile-ttl\); run: CONFIG SET maxmemory-policy noeviction",
        ),
        (replace(FIT, memory_limit_bytes=10, memory_used_bytes=10), RedisSetupError, False, "is full: 10 of 10 bytes"),
        (replace(FIT, append_only=False), RedisDurabilityError, False, "run: CONFIG SET appendonly yes, and set"),
        (replace(FIT, fsync="no"), RedisDurabilityError, False, "run: CONFIG SET appendfsync everysec"),
        (replace(FIT, fsync=None), RedisDurabilityError, False, "CONFIG GET is not allowed"),
    ],
)
def test_what_speaks_against_a_server(facts: ServerFacts, error: type[RedisSetupError], fatal: bool, says: str) -> None:
    """Each finding names what is wrong and what makes it right."""
    finding = judge(facts)[0]
    assert (finding.error, finding.fatal) == (error, fatal)
    with pytest.raises(error, match=says):
        raise finding.error(str(finding))


@pytest.mark.parametrize(
    ("append_only", "fsync", "wanted", "fatal"),
    [
        (True, "always", "always", []),
        (True, "always", "none", []),
        (True, "everysec", "always", [True]),
        (True, "no", "everysec", [True]),
        (False, "always", "everysec", [True]),
        (False, "everysec", "none", []),
        (True, None, "always", [False]),
    ],
)
def test_durability_that_is_asked_for(
    append_only: bool, fsync: str | None, wanted: Durability, fatal: list[bool]
) -> None:
    """Less than that is an error; what cannot be read is a warning; and "none" is content with anything."""
    findings = judge(replace(FIT, append_only=append_only, fsync=fsync), durability=wanted)
    assert [finding.fatal for finding in findings] == fatal
    assert all(finding.error is RedisDurabilityError for finding in findings)


@pytest.mark.parametrize(
    ("kind", "version", "count"),
    [
        ("redis", (7, 0, 15), 3),  # a branch that never got a fix
        ("redis", (7, 2, 11), 2),
        ("redis", (8, 2, 6), 1),
        ("redis", (8, 2, 8), 0),
        ("redis", (8, 10, 2), 0),
        ("valkey", (8, 1, 3), 3),
        ("valkey", (9, 0, 4), 1),
        ("valkey", (9, 1, 2), 0),
        ("valkey", (10, 0, 0), 0),
    ],
)
def test_known_holes(kind: str, version: tuple[int, int, int], count: int) -> None:
    """Told by the release of each branch; never more than a warning, since distributions fix in silence."""
    facts = replace(FIT, kind=kind, version=version)  # type: ignore[arg-type]
    findings = [finding for finding in judge(facts) if "can run code" in finding.problem]
    assert [finding.fatal for finding in findings] == [False] * count


def test_the_worst_comes_first() -> None:
    """Of several findings the fatal one is raised."""
    facts = replace(FIT, version=(8, 1, 0), role="slave", append_only=False)
    assert [finding.fatal for finding in judge(facts)] == [True, False, False, False, False]


@pytest.mark.parametrize("text", ["", "x.y", "255.255.255", "9.1.2-rc1", "7"])
def test_version_numbers_of_all_kinds(text: str) -> None:
    """None of them breaks the check."""
    facts = ServerFacts.parse({"redis_version": text}, None)
    assert len(facts.version) == 3
    judge(facts)


# -- asked ----------------------------------------------------------------------------------------------------------


def of_its_setup(findings: Sequence[Finding]) -> list[type[RedisSetupError]]:
    """What is wrong, but for the holes of whichever server stands on this machine's PATH."""
    return [finding.error for finding in findings if finding.error is not RedisVersionError]


async def test_our_own_server_fits(redis_url: str) -> None:
    """Its facts are read, and nothing stays open."""
    before = holdings()
    facts, _ = await check_server(redis_url)
    assert facts.append_only
    assert facts.fsync == "no"
    assert facts.memory_used_bytes > 0
    assert any(facts.version)
    assert holdings() == before


async def test_an_evicting_server_is_refused() -> None:
    """By name; and where the configuration says so, only warned of."""
    with a_server(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        with pytest.raises(RedisEvictionError, match="CONFIG SET maxmemory-policy noeviction"):
            await check_server(server.url)
        _, findings = await check_server(server.url, checks="warn")
        assert of_its_setup(findings) == [RedisEvictionError]
        assert (await check_server(server.url, checks="off")).findings == ()


async def test_without_an_append_only_file(caplog: pytest.LogCaptureFixture) -> None:
    """A warning that nobody overlooks, and an error where durability was asked for."""
    with a_server(appendonly="no") as server:
        with caplog.at_level(logging.WARNING, logger="headrace.server"):
            facts, _ = await check_server(server.url)
        assert facts.durability == "none"
        assert "a crash loses every job since its last snapshot" in caplog.text
        with pytest.raises(RedisDurabilityError, match="CONFIG SET appendonly yes"):
            await check_server(server.url, durability="everysec")


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_the_mode_is_read_from_a_real_server(fsync: str) -> None:
    """INFO tells of the file, CONFIG of its fsync."""
    with a_server(appendfsync=fsync) as server:
        assert (await check_server(server.url)).facts.durability == fsync


async def test_a_replica_of_another(own_server: EmbeddedServer) -> None:
    """Writes would be refused one by one; better to know before."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.replicaof("localhost", "1")
        with pytest.raises(RedisRoleError, match="is a replica"):
            await check_server(own_server.url)


async def test_a_user_who_may_not_read_the_configuration(own_server: EmbeddedServer) -> None:
    """A hosted server, or a service with few rights: a warning, and the rest is still judged."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">x", "~*", "+@all", "-config")
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("maxmemory", "1gb")
    url = own_server.url.replace("unix://", "unix://plain:x@")
    _, findings = await check_server(url, checks="warn")
    assert of_its_setup(findings) == [RedisEvictionError, RedisDurabilityError]


async def test_a_user_who_may_not_even_ask(own_server: EmbeddedServer) -> None:
    """INFO is needed; the error is one of rights."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">x", "~*", "+@all", "-info")
    with pytest.raises(RedisSetupError, match=r"(?i)info.*ACL"):
        await check_server(own_server.url.replace("unix://", "unix://plain:x@"))


async def test_a_server_that_does_not_answer() -> None:
    """Known at once, under the URL without its password."""
    with pytest.raises(RedisUnavailableError, match="asking Redis what it is"):
        await check_server("redis://:secret@localhost:1")


async def test_a_full_server_is_warned_of() -> None:
    """It may drain: answers that are consumed make room."""
    with a_server(maxmemory="1") as server:
        _, findings = await check_server(server.url)
        assert [finding for finding in findings if "is full" in finding.problem]
