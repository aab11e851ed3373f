"""Kubernetes' restricted standard, a read-only root, and resources that are asked for as they are used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from deploy.kustomization import Object
from deploy.manifests import Manifests, Pod

__all__ = ["findings"]

_VOLUMES: Final = {"name", "configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim", "downwardAPI"}
_HOST: Final = ("hostNetwork", "hostPID", "hostIPC")


def findings(manifests: Manifests) -> Iterator[str]:
    """What the namespace would refuse, or a security review."""
    for found in manifests.of("Namespace"):
        if found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace does not enforce the restricted standard"
    if not manifests.of("Namespace"):
        yield "there is no namespace"
    for pod in manifests.pods:
        yield from _pod(pod)
        yield from _resources(pod)
        head = pod is manifests.head.pod
        if not head and pod.spec.get("automountServiceAccountToken", True):
            yield f"{pod.name}: has a token for Kubernetes, and needs none"
    for pod in manifests.ray_pods:
        if pod.resource("memory") != _request(pod, "memory"):
            yield f"{pod.name}: memory asked for and memory allowed differ; a full node would kill it"
    sidecar = manifests.cluster.get("autoscalerOptions", {}).get("securityContext", {})
    yield from (f"the autoscaler: {fault}" for fault in _container(sidecar))
    if manifests.cluster.get("authOptions", {}).get("mode") != "token":
        yield "Ray lets anybody in who reaches it: authOptions.mode is not token"


def _pod(pod: Pod) -> Iterator[str]:
    context: dict[str, Any] = pod.spec.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield f"{pod.name}: may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{pod.name}: has no seccomp profile"
    yield from (f"{pod.name}: uses the host's {name}" for name in _HOST if pod.spec.get(name))
    for volume in pod.spec.get("volumes", []):
        if strange := set(volume) - _VOLUMES:
            yield f"{pod.name}: {strange} is no volume that the restricted standard allows"
    for container in (*pod.spec["containers"], *pod.spec.get("initContainers", [])):
        faults = _container(container.get("securityContext", {}))
        yield from (f"{pod.name}: {container['name']}: {fault}" for fault in faults)


def _container(context: Object) -> Iterator[str]:
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        yield "keeps capabilities"
    if not context.get("readOnlyRootFilesystem"):
        yield "may write to its root file system"


def _resources(pod: Pod) -> Iterator[str]:
    for container in pod.spec["containers"]:
        resources = container.get("resources", {})
        for name in ("cpu", "memory"):
            if name not in resources.get("requests", {}):
                yield f"{pod.name}: {container['name']} asks for no {name}"
        if "memory" not in resources.get("limits", {}):
            yield f"{pod.name}: {container['name']} has no limit of memory"
        if "cpu" in resources.get("limits", {}):
            yield f"{pod.name}: {container['name']} has a limit of CPU, which stops it in the middle of a batch"


def _request(pod: Pod, name: str) -> float:
    requests = {"resources": {"requests": pod.container.get("resources", {}).get("requests", {})}}
    return Pod(pod.name, {}, {"containers": [requests]}).resource(name)
