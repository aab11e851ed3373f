"""A deployed application whose Redis does not fit: the deployment fails, and says why."""

from __future__ import annotations

import pytest

from headrace.errors import HeadraceError
from headrace_cluster.app import application
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService, _deploy
from headrace_cluster.settings import load_config
from ray import serve

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.usefixtures("service")
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
