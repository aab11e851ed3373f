"""What a configuration says of scaling, and what becomes of it: the plan, Serve's options, and clear errors."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.serve import Application

from headrace.errors import ConfigError
from headrace_cluster.app import application
from headrace_cluster.autoscaling.deployments import PoolOptions
from headrace_cluster.autoscaling.planning import scaling_plan
from headrace_cluster.config.settings import ServiceConfig, load_config
from headrace_cluster.local import LocalService
from headrace_cluster.router.health import health

URL = "redis://:sesame@host/0"


def config(*pools: dict[str, Any], **model: Any) -> ServiceConfig:
    told = {"engine": {"kind": "echo"}, "pools": list(pools)} | model
    return load_config({"redis_url": URL, "models": {"m": told}})


def refusal(*pools: dict[str, Any], **model: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        config(*pools, **model)
    return str(raised.value)


def test_pools_keep_a_fixed_number_unless_they_have_bounds() -> None:
    service = config({"replicas": 3}, {"name": "gpu", "min_replicas": 0, "max_replicas": 5, "gpus": 1, "cost": 9})
    options = PoolOptions(service, generation="1")
    fixed, scaled = (options.of(name, pool) for name, pool in service.pools.items())
    assert fixed["num_replicas"] == 3
    assert (scaled["autoscaling_config"].min_replicas, scaled["autoscaling_config"].max_replicas) == (0, 5)
    assert scaled["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert "num_replicas" not in scaled


def test_labels_choose_nodes() -> None:
    service = config({"labels": {"ray.io/accelerator-type": "A100"}})
    (options,) = (PoolOptions(service, generation="1").of(*item) for item in service.pools.items())
    assert options["ray_actor_options"]["label_selector"] == {"ray.io/accelerator-type": "A100"}


def test_the_plan_is_what_was_configured() -> None:
    service = load_config(
        {
            "shared_pools": {"all": {"min_replicas": 1, "max_replicas": 4, "memory_bytes": 1 << 30}},
            "models": {
                "a": {
                    "engine": {"kind": "echo"},
                    "pools": [{"min_replicas": 0, "max_replicas": 2}, {"name": "gpu", "gpus": 1}],
                    "shards": 2,
                    "scaling": {"drain_s": 5, "idle_s": 60, "cool_down_s": 7, "utilisation": 0.5},
                },
                "b": {"engine": {"kind": "echo"}, "pools": [{"shared": "all"}]},
            },
        }
    )
    plan = scaling_plan(service)
    a, b = plan.models
    assert (a.pools, a.names) == (("a@cpu", "a@gpu"), ("a#0", "a#1"))
    assert (a.drain_s, a.idle_s, a.utilisation) == (5, 60, 0.5)
    assert (b.pools, b.names) == (("@all",), ("b",))
    bounds = {pool.name: (pool.min_replicas, pool.max_replicas, pool.cool_down_s) for pool in plan.pools}
    assert bounds == {"a@cpu": (0, 2, 7), "a@gpu": (1, 1, 7), "@all": (1, 4, None)}


def test_an_application_with_scaling_pools_is_built_without_its_password_to_be_seen() -> None:
    built = application(config({"min_replicas": 0, "max_replicas": 5}))
    assert isinstance(built, Application)
    assert "sesame" not in repr(built._bound_deployment)


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"min_replicas": 5, "max_replicas": 2}, "min_replicas, 5, is above max_replicas, 2"),
        ({"min_replicas": 1}, "min_replicas and max_replicas belong together"),
        ({"max_replicas": 3}, "min_replicas and max_replicas belong together"),
        ({"min_replicas": 0, "max_replicas": 0}, "max_replicas: Input should be greater than or equal to 1"),
        ({"min_replicas": 1, "max_replicas": 2, "replicas": 2}, "replicas is a fixed number"),
        ({"cost": 0}, "cost"),
        ({"cost": "cheap"}, "cost"),
        ({"labels": ["gpu"]}, "labels"),
        ({"min_replica": 1}, "min_replica"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_by_name(pool: dict[str, Any], words: str) -> None:
    assert words in refusal(pool)


def test_two_pools_of_one_name_are_refused() -> None:
    assert "two pools have one name" in refusal({"name": "cpu"}, {"name": "cpu"})


@pytest.mark.parametrize("scaling", [{"drain_s": 0}, {"idle_s": -1}, {"utilisation": 1.5}, {"drain": 5}])
def test_aims_that_make_no_sense_are_refused_by_name(scaling: dict[str, Any]) -> None:
    (key,) = scaling
    assert key in refusal({}, scaling=scaling)


def test_a_model_that_may_rest_lacks_nothing() -> None:
    """Probes must not take a pod away because nobody had work."""
    counts = {"m": {"replicas": 0, "waiting": 0, "in_flight": 0}}
    assert health(counts, redis_answers=True).status_code == 503
    resting = config({"min_replicas": 0, "max_replicas": 5}).may_rest
    assert health(counts, redis_answers=True, may_rest=resting).status_code == 200
    assert config({"min_replicas": 1, "max_replicas": 5}).may_rest == frozenset()


# -- a pool that no node can hold ---------------------------------------------------------------------------


@pytest.fixture
def _small_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of one machine without a GPU."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {}}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("_small_node")
def test_a_gpu_that_this_machine_does_not_have_is_refused_at_once() -> None:
    """Also where the pool might stay at none: no job could ever start it."""
    service = LocalService(config({}, {"name": "gpu", "gpus": 1, "min_replicas": 0, "max_replicas": 2}))
    with pytest.raises(ConfigError, match="pool m@gpu: no node can hold a replica: it asks for 1 GPU, and no node"):
        service._find_nodes()


@pytest.mark.usefixtures("_small_node")
def test_in_a_cluster_it_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A node may come."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    LocalService(config({"labels": {"kind": "gpu"}}))._find_nodes()
    assert "pool m@cpu: no node can hold a replica: it asks for a node with the labels kind=gpu" in caplog.text
