"""What KubeRay's operator does with the manifests, done here: pods of groups, and Serve's configuration at the head."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.checks.redis_servers import settings
from deploy.checks.references import secrets
from deploy.derived import command, variables
from deploy.kustomization import overlay
from deploy.manifests import Group, Manifests
from deploy.pods import Pod, PodNetwork
from headrace_cluster.embedded import EmbeddedServer

__all__ = ["Operator", "is_running", "jobs_url", "manifests_with", "redis_servers"]

_ASK_S: Final = 120.0
_OWN: Final = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")
"""Of this process's environment, what pods have too: their image, in place of one."""


class Operator:
    """Starts pods of one RayService, and asks its head.

    Args:
        manifests: what it is made of.
        network: that its pods are on.
        prefix: what their names begin with.
        variables: of its pods, besides those that the operator gives them.
    """

    def __init__(
        self,
        manifests: Manifests,
        network: PodNetwork,
        *,
        prefix: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.manifests, self.network = manifests, network
        self._prefix = prefix
        self._variables = {"RAY_USAGE_STATS_ENABLED": "0", **(variables or {})}
        self._started = 0

    def start(self, group: Group, names: dict[str, str] | None = None) -> Pod:
        """A pod of a group, which also knows these names with their addresses."""
        self._started += 1
        name = f"{self._prefix}{group.name}-{self._started}"
        environment = variables(self.manifests, group, secrets(), pod=name)
        environment |= {name: os.environ[name] for name in _OWN if name in os.environ}
        environment |= self._variables
        return self.network.start(name, command(self.manifests, group), environment, self._files(group), names)

    def _files(self, group: Group) -> dict[str, str]:
        """What ConfigMaps and Secrets put into its pods."""
        holders = {**secrets(), **self.manifests.config_maps}
        return {path: holders[holder][key] for path, holder, key in self.manifests.mounts(group.pod)}

    def deploy(self, head: str) -> None:
        """Hand the Serve config to the dashboard at an address, byte for byte and with the token."""
        config = yaml.safe_load(self.manifests.service["spec"]["serveConfigV2"])
        self._ask(head, "PUT", json.dumps(config).encode())

    def status(self, head: str) -> dict[str, Any]:
        """What Serve says of the application.

        Raises:
            OSError: nobody answers.
        """
        found: dict[str, Any] = json.loads(self._ask(head, "GET"))["applications"].get("headrace", {})
        return found

    def _ask(self, head: str, method: str, body: bytes | None = None) -> bytes:
        token = secrets()["headrace-ray-token"]["auth_token"]
        headers = {"x-ray-authorization": f"Bearer {token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://{head}:8265/api/serve/applications/", body, headers, method=method)
        with urllib.request.urlopen(asked, timeout=_ASK_S) as answer:
            return bytes(answer.read())


def is_running(status: Mapping[str, Any]) -> bool:
    """Whether Serve has all that it was told to.

    Raises:
        RuntimeError: it has given up.
    """
    if status.get("status") == "DEPLOY_FAILED":
        raise RuntimeError(status["message"])
    return status.get("status") == "RUNNING"


def manifests_with(engine: Mapping[str, Any], name: str) -> Manifests:
    """The manifests of an overlay, whose models have an engine that this machine can run; all else as it is."""
    objects = overlay(name)
    for found in objects:
        if found["kind"] == "ConfigMap" and "models.yaml" in found["data"]:
            content = yaml.safe_load(found["data"]["models.yaml"])
            for model in content["models"].values():
                model["engine"] = dict(engine)
            found["data"]["models.yaml"] = yaml.safe_dump(content)
    return Manifests(objects)


@contextmanager
def redis_servers(manifests: Manifests, folder: Path, names: Mapping[str, str]) -> Iterator[None]:
    """The servers of the StatefulSets, with the settings and passwords that they have there."""
    with ExitStack() as stack:
        for pod in manifests.servers:
            own = folder / pod.name
            own.mkdir()
            (own / "auth.conf").write_text(secrets()[pod.name]["auth.conf"])
            told = settings(manifests, pod) | {
                "include": str(own / "auth.conf"),
                "dir": str(own),
                "bind": names[pod.name],
            }
            stack.enter_context(EmbeddedServer(own / "server", port=6379, die_with_parent=True, options=told))
        yield


def jobs_url(network: PodNetwork) -> str:
    """The Redis of the jobs, as this process reaches it."""
    return secrets()["headrace-redis"]["url"].replace("headrace-redis", network.names["headrace-redis"])
