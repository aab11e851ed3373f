"""The Redis password of a running service: not in process lists, logs, Serve's status or Ray's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from headrace import Client, Job
from headrace_cluster.config.settings import load_config
from headrace_cluster.embedded import EmbeddedServer
from headrace_cluster.local import LocalService
from support.redis_cluster import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PASSWORD = "Xk7-tr0ub4dor-9Qz"


@pytest.fixture
def locked_server() -> Iterator[EmbeddedServer]:
    [port] = free_ports(1)
    with EmbeddedServer(fsync="no", port=port, die_with_parent=True, options={"requirepass": PASSWORD}) as server:
        yield server


@pytest.mark.parametrize("how", ["url", "file"])
def test_nobody_who_looks_on_sees_it(locked_server: EmbeddedServer, tmp_path: Path, how: str) -> None:
    """Whether the URL is in the configuration or in a file; from a file it does not even get into Ray."""
    url = f"redis://:{PASSWORD}@127.0.0.1:{locked_server.port}/0"
    file = tmp_path / "url"
    file.write_text(url + "\n")
    config: dict[str, Any] = {"models": {"echo": {"engine": {"kind": "echo"}, "pools": [{"cpus": 0.5}]}}}
    config |= {"redis_url": url} if how == "url" else {"redis": {"url_file": str(file)}}
    with LocalService(load_config(config), verbose=True) as service:
        with Client(service.url) as client:
            assert client.run(Job(model="echo", input="x"), timeout_s=20).unwrap() == "x"
        places = {
            "a process's arguments": commands_of_processes(locked_server.pid),
            "Serve's status": repr(serve.status()).encode(),
            "Serve's details": details_of_serve(),
            "Ray's actors": repr(ray._private.state.actors()).encode(),
            "Ray's jobs": repr(ray._private.state.jobs()).encode(),
            **logs(),
        }
        if how == "file":
            places |= stored_in_ray()
    assert len(places) > 10
    assert [place for place, content in places.items() if PASSWORD.encode() in content] == []


def commands_of_processes(but: int) -> bytes:
    """What `ps` shows of all processes but the server's own, which was started with its password as an option."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        if process.parent.name != str(but):
            try:
                found.append(process.read_bytes())
            except OSError:  # it has ended
                continue
    return b"\n".join(found)


def details_of_serve() -> bytes:
    """What the dashboard's page on Serve is made of."""
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    return repr(ray.get(controller.get_serve_instance_details.remote())).encode()


def logs() -> dict[str, bytes]:
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stored_in_ray() -> dict[str, bytes]:
    """All that the control store holds: Serve's checkpoints, functions, runtime environments."""
    kv = ray.experimental.internal_kv
    found: dict[str, bytes] = {}
    for namespace in (None, b"serve", b"fun", b"workflow", b"session", b"cluster", b"job_info", b"dashboard"):
        for key in kv._internal_kv_list(b"", namespace=namespace):
            found[f"{namespace!r} {key!r}"] = kv._internal_kv_get(key, namespace=namespace) or b""
    return found
