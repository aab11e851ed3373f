"""An application that cannot run: its deployment fails, and says why."""

from __future__ import annotations

import pytest
from ray import serve

from headrace.errors import HeadraceError, ModelLoadError
from headrace_cluster.app import application
from headrace_cluster.config.settings import load_config
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService, _deploy

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_an_evicting_server(service: LocalService) -> None:
    """The router refuses to start before it has told anybody of its models; Serve shows its words."""
    options = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    small = {"cpus": 0.05}
    with EmbeddedServer(fsync="no", die_with_parent=True, options=options) as server:
        models = {"picky": {"engine": {"kind": "echo"}, "pools": [small]}}
        config = load_config({"models": models, "router": small, "redis_url": server.url})
        try:
            with pytest.raises(HeadraceError, match=r"router: .*CONFIG SET maxmemory-policy noeviction"):
                _deploy(application(config), "unfit", quietly=True)
        finally:
            serve.delete("unfit")
    assert service.counts()


def test_a_model_that_no_replica_can_load(service: LocalService) -> None:
    """What the replica said is the error; Serve's own says only which deployment it was."""
    engine = {"kind": "custom", "target": "support.engines:NoSuchEngine"}
    small = {"cpus": 0.05}
    config = load_config(
        {"models": {"bad": {"engine": engine, "pools": [small]}}, "router": small, "redis_url": service.url}
    )
    try:
        with pytest.raises(ModelLoadError) as caught:
            _deploy(application(config), "broken", quietly=True)
    finally:
        serve.delete("broken")
    said = "bad@cpu: support.engines:NoSuchEngine: support.engines has no class NoSuchEngine"
    assert str(caught.value) == said
