"""The Redis servers of the manifests: started with the very files and arguments, and asked what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.checks.redis_servers import settings
from deploy.checks.references import secrets
from deploy.kustomization import OVERLAYS, overlay
from deploy.manifests import Manifests
from headrace.server.check import check_server
from headrace_cluster.embedded import EmbeddedServer
from support.redis_cluster import free_ports

SERVERS = ("headrace-redis", "headrace-gcs-redis")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, EmbeddedServer, str]]:
    """One of them, with the file of its password, where the paths in its settings lead here."""
    manifests = Manifests(overlay("cpu"))
    [pod] = [pod for pod in manifests.servers if pod.name == request.param]
    told = settings(manifests, pod)
    password = secrets()[request.param]["password"]
    (tmp_path / "auth.conf").write_text(secrets()[request.param]["auth.conf"])
    [port] = free_ports(1)
    options = told | {"include": str(tmp_path / "auth.conf"), "dir": str(tmp_path), "port": str(port)}
    assert told["include"] == "/run/secrets/valkey/auth.conf"
    with EmbeddedServer(tmp_path / "server", port=port, die_with_parent=True, options=options) as running:
        yield request.param, running, f"redis://:{password}@127.0.0.1:{port}/0"


async def test_it_is_what_the_service_asks_for(server: tuple[str, EmbeddedServer, str]) -> None:
    """As `redis.durability: always` of models.yaml has it; for Ray's own, every second will do."""
    name, _, url = server
    report = await check_server(url, durability="always" if name == "headrace-redis" else "everysec")
    assert report.findings == ()


def test_it_lets_nobody_in_without_the_password(server: tuple[str, EmbeddedServer, str]) -> None:
    """From the file that a Secret brings."""
    _, _, url = server
    with (
        redis.Redis.from_url(url) as known,
        redis.Redis.from_url(url.partition("@")[2].join(("redis://", ""))) as other,
    ):
        assert known.ping()
        with pytest.raises(redis.exceptions.AuthenticationError):
            other.ping()


def test_the_secrets_are_as_good_as_random() -> None:
    """Made up by the script, one for each, and the URL says the same as the server is told."""
    made = secrets()
    passwords = [made["headrace-redis"]["password"], made["headrace-gcs-redis"]["password"]]
    passwords.append(made["headrace-ray-token"]["auth_token"])
    assert len(set(passwords)) == 3
    assert all(len(password) >= 32 for password in passwords)
    assert made["headrace-redis"]["url"] == f"redis://:{passwords[0]}@headrace-redis:6379/0"


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_password_is_in_the_manifests(name: str) -> None:
    """Secrets are made where they are applied."""
    assert [found["kind"] for found in overlay(name) if found["kind"] == "Secret"] == []
