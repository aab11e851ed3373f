"""The objects of an overlay, and what a reader wants to know of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from unittest import mock

import yaml

from deploy.kustomization import Object
from headrace_cluster.config.settings import ServiceConfig, load_config

__all__ = ["Group", "Manifests", "Pod", "amount"]

_UNITS: Final = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def amount(quantity: str | int | float) -> float:
    """A Kubernetes quantity as a number: `500m` is 0.5, `8Gi` is bytes."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Pod:
    """A pod that will be made of a template."""

    name: str
    labels: dict[str, str]
    """With those that the operator adds and rules may go by."""
    spec: Object
    claims: tuple[str, ...] = ()
    """Volumes that a StatefulSet adds."""

    @property
    def container(self) -> Object:
        """The first one, which is Ray's or the server's."""
        found: Object = self.spec["containers"][0]
        return found

    @property
    def environment(self) -> dict[str, Any]:
        return {entry["name"]: entry.get("value") for entry in self.container.get("env", [])}

    def resource(self, name: str) -> float:
        """What the limits say of it, else the requests, else nothing: as the operator tells Ray."""
        resources = self.container.get("resources", {})
        found = resources.get("limits", {}).get(name, resources.get("requests", {}).get(name, 0))
        return amount(found)


@dataclass(frozen=True)
class Group:
    """A worker group of the RayService, or its head."""

    name: str
    spec: Object
    pod: Pod

    @property
    def labels(self) -> dict[str, str]:
        """What replicas may be told to look for."""
        return dict(self.spec.get("labels", {}))

    @property
    def cpus(self) -> float:
        return float(self.spec.get("rayStartParams", {}).get("num-cpus", self.pod.resource("cpu")))

    @property
    def gpus(self) -> float:
        return self.pod.resource("nvidia.com/gpu")

    def suits(self, selector: dict[str, str]) -> bool:
        """Whether a replica that wants these labels may run here."""
        return selector.items() <= self.labels.items()


class Manifests:
    """All objects of an overlay."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    @cached_property
    def service(self) -> Object:
        [found] = self.of("RayService")
        return found

    @property
    def cluster(self) -> Object:
        found: Object = self.service["spec"]["rayClusterConfig"]
        return found

    @cached_property
    def serve(self) -> Object:
        """The Serve config, which is text to Kubernetes."""
        found: Object = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        return found

    @property
    def application(self) -> Object:
        found: Object = self.serve["applications"][0]
        return found

    @cached_property
    def head(self) -> Group:
        return _group("headgroup", "head", self.cluster["headGroupSpec"])

    @cached_property
    def groups(self) -> list[Group]:
        """The worker groups."""
        return [_group(spec["groupName"], "worker", spec) for spec in self.cluster["workerGroupSpecs"]]

    @property
    def ray_pods(self) -> list[Pod]:
        return [self.head.pod, *(group.pod for group in self.groups)]

    @cached_property
    def servers(self) -> list[Pod]:
        """The pods of StatefulSets."""
        return [
            Pod(
                found["metadata"]["name"],
                found["spec"]["template"]["metadata"]["labels"],
                found["spec"]["template"]["spec"],
                tuple(claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])),
            )
            for found in self.of("StatefulSet")
        ]

    @property
    def pods(self) -> list[Pod]:
        return [*self.ray_pods, *self.servers]

    @cached_property
    def config_maps(self) -> dict[str, dict[str, str]]:
        return {found["metadata"]["name"]: found["data"] for found in self.of("ConfigMap")}

    @cached_property
    def models(self) -> ServiceConfig:
        """What the service is told to host, checked as it checks it itself."""
        [name] = [name for name in self.config_maps if name.startswith("headrace-models")]
        with mock.patch.dict(os.environ):
            for variable in [variable for variable in os.environ if variable.startswith("HEADRACE_")]:
                del os.environ[variable]
            return load_config(yaml.safe_load(self.config_maps[name]["models.yaml"]))

    def mounts(self, pod: Pod) -> Iterator[tuple[str, str, str]]:
        """Every file that a ConfigMap or Secret puts into a pod: its path, the object's name, and the key."""
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for mount in pod.container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            for source, name in (("configMap", "name"), ("secret", "secretName")):
                if source in volume:
                    named = volume[source][name]
                    items = volume[source].get("items") or [
                        {"key": key, "path": key} for key in self.config_maps.get(named, {})
                    ]
                    yield from ((f"{mount['mountPath']}/{item['path']}", named, item["key"]) for item in items)


def _group(name: str, kind: str, spec: Object) -> Group:
    template = spec["template"]
    labels = {
        **template.get("metadata", {}).get("labels", {}),
        **spec.get("labels", {}),
        "ray.io/group": name,
        "ray.io/node-type": kind,
    }
    return Group(name, spec, Pod(f"group {name}", labels, template["spec"]))
