"""What of kustomize the manifests use, so that they are tested where there is no kubectl.

`test_rendering` holds it against the real one wherever that is installed. Whatever is not understood is refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["KUBERNETES", "OVERLAYS", "Object", "overlay", "parse", "rendered"]

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS: Final = ("dev", "cpu", "gpu", "gpu-spot")

Object = dict[str, Any]

_KNOWN: Final = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "images",
    "patches",
    "configMapGenerator",
    "configurations",
}
_NOT_IN_A_NAMESPACE: Final = ("Namespace",)


@dataclass
class _Accumulated:
    """What a kustomization has gathered so far."""

    objects: list[Object] = field(default_factory=list)
    generated: dict[str, Object] = field(default_factory=dict)
    """ConfigMaps by their name without suffix."""
    references: list[tuple[str, str]] = field(default_factory=list)
    """Kind and path of fields that name a ConfigMap, besides those of Kubernetes' own kinds."""


def overlay(name: str) -> list[Object]:
    """All objects of an overlay."""
    return rendered(KUBERNETES / "overlays" / name)


def parse(text: str) -> list[Object]:
    """The objects in a text of YAML."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def rendered(folder: Path) -> list[Object]:
    """All objects of a kustomization."""
    gathered = _gather(folder, _Accumulated())
    names = {name: f"{name}-{_suffix(map_)}" for name, map_ in gathered.generated.items()}
    for name, map_ in gathered.generated.items():
        map_["metadata"]["name"] = names[name]
    for found in gathered.objects:
        for path in _references(found, gathered):
            for holder in _at(found, path.split("/")):
                holder["name"] = names.get(holder["name"], holder["name"])
    return [*gathered.objects, *gathered.generated.values()]


def _gather(folder: Path, gathered: _Accumulated) -> _Accumulated:
    [content] = parse((folder / "kustomization.yaml").read_text("utf-8"))
    if strange := set(content) - _KNOWN:
        raise ValueError(f"{folder}: {strange} is not understood here")
    for name in content.get("resources", []):
        if (folder / name).is_dir():
            _gather((folder / name).resolve(), gathered)
        else:
            gathered.objects += [copy.deepcopy(found) for found in parse((folder / name).read_text("utf-8"))]
    for name in content.get("configurations", []):
        [rules] = parse((folder / name).read_text("utf-8"))
        gathered.references += [
            (spec["kind"], spec["path"].removesuffix("/name"))
            for rule in rules["nameReference"]
            for spec in rule["fieldSpecs"]
        ]
    for name in content.get("components", []):
        _gather((folder / name).resolve(), gathered)
    _generate(folder, content, gathered)
    for patch in content.get("patches", []):
        _patch(gathered, patch["target"], yaml.safe_load((folder / patch["path"]).read_text("utf-8")))
    _finish(content, gathered)
    return gathered


def _generate(folder: Path, content: Object, gathered: _Accumulated) -> None:
    for generator in content.get("configMapGenerator", []):
        name, replaces = generator["name"], generator.get("behavior") == "replace"
        if replaces != (name in gathered.generated):
            raise ValueError(f"{folder}: the ConfigMap {name} is to be replaced, and is not there; or the other way")
        data = {}
        for file in generator["files"]:
            key, _, path = file.rpartition("=")
            data[key or path] = (folder / path).read_text("utf-8")
        metadata = {"name": name, **generator.get("options", {})}
        gathered.generated[name] = {"apiVersion": "v1", "data": data, "kind": "ConfigMap", "metadata": metadata}


def _patch(gathered: _Accumulated, target: Object, operations: list[Object]) -> None:
    matching = [
        found
        for found in gathered.objects
        if found["kind"] == target["kind"] and found["metadata"]["name"] == target["name"]
    ]
    if len(matching) != 1:
        raise ValueError(f"a patch is meant for {target}, of which there are {len(matching)}")
    for operation in operations:
        _apply(matching[0], operation)


def _apply(root: Object, operation: Object) -> None:
    """One operation of a JSON patch (RFC 6902): `add` and `replace` are all that is needed."""
    *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
    node: Any = root
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node[step]
    value = copy.deepcopy(operation["value"])
    if operation["op"] == "add" and isinstance(node, list) and last == "-":
        node.append(value)
    elif operation["op"] == "add" and isinstance(node, dict):
        node[last] = value
    elif operation["op"] == "replace":
        key: Any = int(last) if isinstance(node, list) else last
        node[key] = (node[key], value)[1]  # it must be there
    else:
        raise ValueError(f"{operation['op']} of {operation['path']} is not understood here")


def _finish(content: Object, gathered: _Accumulated) -> None:
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in content.get("images", [])}
    for found in gathered.objects:
        for container in _containers(found):
            container["image"] = images.get(container["image"], container["image"])
    for found in [*gathered.objects, *gathered.generated.values()]:
        if "namespace" in content and found["kind"] not in _NOT_IN_A_NAMESPACE:
            found["metadata"]["namespace"] = content["namespace"]


def _containers(node: Any) -> Iterator[Object]:
    """Every container, wherever in an object."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from _containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from _containers(value)


def _references(found: Object, gathered: _Accumulated) -> list[str]:
    paths = [path for kind, path in gathered.references if kind == found["kind"]]
    return [*paths, "spec/template/spec/volumes/configMap"] if found["kind"] == "StatefulSet" else paths


def _at(node: Any, path: list[str]) -> Iterator[Object]:
    if isinstance(node, list):
        for item in node:
            yield from _at(item, path)
    elif not path:
        yield node
    elif isinstance(node, dict) and path[0] in node:
        yield from _at(node[path[0]], path[1:])


def _suffix(config_map: Object) -> str:
    """A hash of the content, as long as kustomize's own and of the same letters."""
    return hashlib.sha256(json.dumps(config_map["data"], sort_keys=True).encode()).hexdigest()[:10]
