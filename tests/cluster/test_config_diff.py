"""What a new configuration changes, and what that takes: what is exchanged, and what goes on."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_cluster.app import application
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.rollout.deployment_version import version_of
from headrace_cluster.rollout.diff import Effect, diff_of, routers_part

ECHO: dict[str, Any] = {"engine": {"kind": "echo"}}


def config(models: dict[str, Any] | None = None, **fields: Any) -> ServiceConfig:
    return load_config({"redis_url": "redis://:s3cret@somewhere", "models": models or {"m": ECHO}, **fields})


def changes(old: ServiceConfig, new: ServiceConfig) -> list[tuple[str, Any, Any, str]]:
    return [(change.path, change.old, change.new, str(change.effect)) for change in diff_of(old, new).changes]


# -- as a tutorial --------------------------------------------------------------------------------------------------


def test_nothing_has_changed() -> None:
    """Also where one says what the other leaves out."""
    spelled_out = config({"m": ECHO | {"pools": [{"name": "cpu", "replicas": 1}], "limits": {"retention_s": 3600.0}}})
    assert not diff_of(config(), spelled_out)
    assert diff_of(config(), spelled_out).removed == ()


def test_limits_change_in_place() -> None:
    """So do numbers of replicas; no process is exchanged for them."""
    new = config({"m": ECHO | {"limits": {"lane_capacity": 5}, "pools": [{"replicas": 3}]}})
    assert changes(config(), new) == [
        ("models.m.limits.lane_capacity", 1_000_000, 5, "in place"),
        ("models.m.pools.cpu.replicas", 1, 3, "in place"),
    ]
    assert diff_of(config(), new).in_place


def test_an_engine_takes_new_replicas() -> None:
    """Of its model alone."""
    new = config({"m": {"engine": {"kind": "custom", "target": "a:B"}}})
    found = changes(config(), new)
    assert ("models.m.engine.kind", "echo", "custom", "new replicas") in found
    assert {effect for *_, effect in found} == {"new replicas"}
    assert not diff_of(config(), new).in_place


def test_a_shared_pool_hosts_other_models_in_place() -> None:
    """Its replicas have the version that they had; only the routers are exchanged."""
    shared = {"pools": [{"shared": "hosts"}]}
    pools = {"hosts": {"memory_bytes": 1 << 30}}
    old = config({"m": ECHO | shared}, shared_pools=pools)
    other = config({"m": {"engine": {"kind": "custom", "target": "a:B"}} | shared}, shared_pools=pools)
    more = config({"m": ECHO | shared, "n": ECHO | shared}, shared_pools=pools)

    assert {change.effect for change in diff_of(old, other).changes} == {Effect.ROUTERS}
    assert {change.effect for change in diff_of(old, more).changes} == {Effect.ADDED}
    assert _version(old, "@hosts") == _version(other, "@hosts") == _version(more, "@hosts")
    assert len({_version(each) for each in (old, other, more)}) == 3


def test_models_and_pools_come_and_go() -> None:
    """One line for each, and the names whose jobs must be seen to."""
    old = config({"m": ECHO | {"pools": [{"name": "cpu"}, {"name": "spare"}]}, "gone": ECHO})
    new = config({"m": ECHO | {"pools": [{"name": "cpu"}, {"name": "big", "cpus": 4}]}, "come": ECHO})
    found = {(path, effect) for path, _, _, effect in changes(old, new)}
    assert found == {
        ("models.come", "added"),
        ("models.gone", "removed"),
        ("models.m.pools.big", "added"),
        ("models.m.pools.spare", "removed"),
    }
    assert diff_of(old, new).removed == ("gone",)


def test_fewer_shards_are_names_that_go() -> None:
    """And more are none."""
    two, three = config({"m": ECHO | {"shards": 2}}), config({"m": ECHO | {"shards": 3}})
    assert diff_of(three, two).removed == ("m#2",)
    assert diff_of(two, three).removed == ()
    assert diff_of(two, config()).removed == ("m#0", "m#1")


# -- what each change takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({"router": {"replicas": 2}}, Effect.IN_PLACE),
        ({"router": {"cpus": 2}}, Effect.ROUTERS),
        ({"router": {"drain_s": 5}}, Effect.ROUTERS),
        ({"redis": {"durability": "always"}}, Effect.REPLICAS),
        ({"generation": 7}, Effect.ROUTERS),
        ({"models": {"m": ECHO | {"batching": {"max_jobs": 2}}}}, Effect.ROUTERS),
        ({"models": {"m": ECHO | {"call_timeout_s": 9}}}, Effect.ROUTERS),
        ({"models": {"m": ECHO | {"pools": [{"cpus": 2}]}}}, Effect.REPLICAS),
        ({"models": {"m": ECHO | {"pools": [{"cost": 2}]}}}, Effect.ROUTERS),
        ({"models": {"m": ECHO | {"pools": [{"update": "in_turn"}]}}}, Effect.IN_PLACE),
        ({"models": {"m": ECHO | {"pools": [{"min_replicas": 0, "max_replicas": 4}]}}}, Effect.IN_PLACE),
    ],
)
def test_what_it_takes(fields: dict[str, Any], takes: Effect) -> None:
    """And the deployments' versions agree: what is said to stay has the version that it had."""
    old, new = config(), config(**({"models": None} | fields))
    assert {change.effect for change in diff_of(old, new).changes} == {takes}
    same_routers = _version(old) == _version(new)
    assert same_routers == (takes is Effect.IN_PLACE)
    assert (routers_part(old) == routers_part(new)) == same_routers


def _version(of: ServiceConfig, pool: str = "") -> str:
    """Of the routers, or of a pool's replicas."""
    deployment = application(of, generation=1)._bound_deployment
    if pool:
        deployment = deployment.init_args[2][pool]._bound_deployment
    version = deployment.version
    assert version is not None
    return str(version)


def test_a_generation_has_a_version_of_its_own() -> None:
    """Else two routers of one deployment could be of different generations."""
    versions = {application(config(), generation=number)._bound_deployment.version for number in (1, 2)}
    assert len(versions) == 2


def test_passwords_are_compared_and_not_shown() -> None:
    """Another one is another version; neither is in it, nor in the difference."""
    addresses = [config(redis_url=f"redis://:{word}@somewhere").redis_address for word in ("s3cret", "other")]
    assert version_of(addresses[0]) == version_of(config().redis_address)
    assert version_of(addresses[0]) != version_of(addresses[1])
    assert diff_of(config(), config(redis_url="redis://:other@somewhere")).changes == ()


def test_what_cannot_be_compared_has_no_version() -> None:
    """It would be exchanged at every change, or never."""
    with pytest.raises(TypeError, match="a set has no version"):
        version_of({1})
    assert version_of(RedisAddress(), (1, "a"), {"b": None}) == version_of(RedisAddress(), [1, "a"], {"b": None})
