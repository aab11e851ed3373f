"""Names that must be names of something: Secrets and their keys, ConfigMaps, volumes, Services, paths in settings."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from deploy.kustomization import KUBERNETES, Object, parse
from deploy.manifests import Manifests, Pod

__all__ = ["findings", "secrets"]

_WRITTEN: Final = ("/tmp", "/home/headrace", "/cache")
"""Where Ray and our processes write; the root file system is read-only."""


@cache
def secrets() -> dict[str, dict[str, str]]:
    """The Secrets that `secrets.sh` makes: their keys and decoded values."""
    done = subprocess.run([KUBERNETES / "secrets.sh"], capture_output=True, text=True, check=True)
    return {
        secret["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        for secret in parse(done.stdout)
    }


def findings(manifests: Manifests) -> Iterator[str]:
    """Names of what is not there."""
    for pod in manifests.pods:
        yield from _volumes(manifests, pod)
    for pod in manifests.ray_pods:
        mounted = {mount["mountPath"] for mount in pod.container.get("volumeMounts", [])}
        yield from (f"{pod.name}: nothing to write to is mounted at {path}" for path in _WRITTEN if path not in mounted)
    for name, key in _secret_keys(manifests.objects):
        if key not in secrets().get(name, {}):
            yield f"the Secret {name} with the key {key} is made by nobody (secrets.sh)"
    token = manifests.cluster.get("authOptions", {}).get("secretName")
    if token and "auth_token" not in secrets().get(token, {}):
        yield f"the Secret {token} with the key auth_token is made by nobody (secrets.sh)"
    yield from _services(manifests)
    yield from _paths(manifests)
    yield from _addresses(manifests)
    yield from _budgets(manifests)


def _volumes(manifests: Manifests, pod: Pod) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    sidecar = manifests.cluster.get("autoscalerOptions", {}) if pod is manifests.head.pod else {}
    mounts = [*pod.container.get("volumeMounts", []), *sidecar.get("volumeMounts", [])]
    for mount in mounts:
        if mount["name"] not in volumes and mount["name"] not in pod.claims:
            yield f"{pod.name}: mounts the volume {mount['name']}, which it does not have"
    if unused := set(volumes) - {mount["name"] for mount in mounts}:
        yield f"{pod.name}: has the volumes {sorted(unused)}, and mounts them nowhere"
    for volume in volumes.values():
        name = volume.get("configMap", {}).get("name")
        if name is not None and name not in manifests.config_maps:
            yield f"{pod.name}: there is no ConfigMap {name}"


def _secret_keys(node: Any) -> Iterator[tuple[str, str]]:
    """Every Secret's key that anything in there names."""
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]
        if "secret" in node and "secretName" in node["secret"]:
            yield from ((node["secret"]["secretName"], item["key"]) for item in node["secret"].get("items", []))
        for value in node.values():
            yield from _secret_keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _secret_keys(value)


def _services(manifests: Manifests) -> Iterator[str]:
    names = {found["metadata"]["name"] for found in manifests.of("Service")}
    for found in manifests.of("Service"):
        selector = found["spec"]["selector"]
        pods = [pod for pod in manifests.pods if selector.items() <= pod.labels.items()]
        if len(pods) != 1:
            yield f"the Service {found['metadata']['name']} selects {[pod.name for pod in pods]}"
        for pod in pods:
            ports = {port["containerPort"] for port in pod.container.get("ports", [])}
            if missing := {port.get("targetPort", port["port"]) for port in found["spec"]["ports"]} - ports:
                yield f"the Service {found['metadata']['name']} leads to {missing}, where {pod.name} has {ports}"
    for found in manifests.of("StatefulSet"):
        if found["spec"]["serviceName"] not in names:
            yield f"there is no Service {found['spec']['serviceName']}"
        labels = found["spec"]["template"]["metadata"]["labels"]
        if not found["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"the StatefulSet {found['metadata']['name']} does not select its own pods"


def _paths(manifests: Manifests) -> Iterator[str]:
    """Files that a setting names are mounted, in every pod of Ray's, for any of them may run anything of ours."""
    config = manifests.application.get("args", {}).get("config")
    wanted = [path for path in (config, manifests.models.redis.url_file) if path]
    for pod in manifests.ray_pods:
        mounted = {path for path, _, _ in manifests.mounts(pod)}
        yield from (f"{pod.name}: there is no file {path}" for path in wanted if str(path) not in mounted)
    for pod in manifests.servers:
        mounted = {path for path, _, _ in manifests.mounts(pod)}
        named = [word for word in pod.container.get("command", []) if word.startswith("/")]
        for path, holder, key in manifests.mounts(pod):
            if path in named:
                named += re.findall(r"^include (.*)$", manifests.config_maps.get(holder, {}).get(key, ""), re.M)
        yield from (f"{pod.name}: there is no file {path}" for path in named if path not in mounted)


def _addresses(manifests: Manifests) -> Iterator[str]:
    services: dict[str, Object] = {found["metadata"]["name"]: found for found in manifests.of("Service")}
    host, _, port = manifests.cluster.get("gcsFaultToleranceOptions", {}).get("redisAddress", "").partition(":")
    if host not in services or int(port or 0) not in {found["port"] for found in services[host]["spec"]["ports"]}:
        yield f"Ray's own state is to be kept at {host}:{port}, which is no Service here"
    if "redisPassword" not in manifests.cluster.get("gcsFaultToleranceOptions", {}):
        yield "Ray is told no password for the Redis of its own state"
    jobs = urlsplit(secrets()["headrace-redis"]["url"]).hostname
    if "headrace-redis" in services and jobs not in services:
        yield f"jobs are to be kept at {jobs}, which is no Service here"
    if host == jobs:
        yield "Ray's own state and the jobs are kept in one Redis"


def _budgets(manifests: Manifests) -> Iterator[str]:
    for found in manifests.of("PodDisruptionBudget"):
        name, spec = found["metadata"]["name"], found["spec"]
        least = spec.get("minAvailable")
        wanted = spec["selector"]["matchLabels"].items()
        matching = [group for group in manifests.groups if wanted <= group.pod.labels.items()]
        groups = {group.name: group.spec["minReplicas"] for group in matching}
        if not isinstance(least, int) or isinstance(least, bool):
            yield f"the budget {name} needs a number for minAvailable: KubeRay's pods cannot be counted otherwise"
        elif least >= sum(groups.values()):
            yield f"the budget {name} keeps {least} of the nodes of {list(groups)}: no drain could end"
