"""What makes Serve start another router, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from headrace import Client, Job
from headrace_cluster import app
from headrace_cluster.config.settings import load_config
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService
from support.breakable import BreakableRouter
from support.waiting import eventually_sync

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of its own, which may be killed."""
    with EmbeddedServer(fsync="always", die_with_parent=True) as server:
        yield server


@pytest.fixture(scope="module")
def router(service: LocalService, server: EmbeddedServer) -> Iterator[DeploymentHandle]:
    """The application beside the other one, small enough for what that leaves."""
    small = {"cpus": 0.05}
    config = load_config(
        {
            "models": {"echo": {"engine": {"kind": "echo"}, "pools": [small]}},
            "router": small | {"drain_s": 1},
            "redis_url": server.url,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "RouterReplica", BreakableRouter)
        handle = serve.run(app.application(config), name="breakable", route_prefix=None)
    yield handle
    serve.delete("breakable")


def ask(router: DeploymentHandle, method: str, *arguments: Any) -> Any:
    return getattr(router, method).remote(*arguments).result(timeout_s=30)


def answers(server: EmbeddedServer) -> None:
    """A job goes all the way."""
    with Client(server.url) as client:
        assert client.run(Job(model="echo", input="hello"), timeout_s=60).unwrap() == "hello"


def test_an_outage_of_redis_is_waited_out(router: DeploymentHandle, server: EmbeddedServer) -> None:
    """Through as many checks of its health as would have condemned it; it is the same process afterwards."""
    answers(server)
    pid, asked = ask(router, "counts")["echo"]["pid"], ask(router, "health_checks")
    server.kill()
    eventually_sync(lambda: ask(router, "health_checks") >= asked + 5, within_s=30)
    server.start()
    answers(server)
    assert ask(router, "counts")["echo"]["pid"] == pid


def test_a_router_with_a_fault_is_replaced(router: DeploymentHandle, server: EmbeddedServer) -> None:
    """One that cannot go on says so, and Serve starts another, which goes on with the jobs."""
    answers(server)
    pid = ask(router, "counts")["echo"]["pid"]
    ask(router, "break_down", "echo")
    answers(server)
    assert ask(router, "counts")["echo"]["pid"] != pid
