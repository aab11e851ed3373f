"""Whether the Redis servers keep what they are given, and what the service asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from deploy.manifests import Manifests, Pod, amount

__all__ = ["findings", "settings"]

_RANK: Final = {"no": 0, "everysec": 1, "always": 2}
_ASKED: Final = {None: 1, "none": 0, "everysec": 1, "always": 2}
_MOST_OF_MEMORY: Final = 0.6
"""A rewrite of the append-only file forks, and pages that change meanwhile are there twice."""


def findings(manifests: Manifests) -> Iterator[str]:
    """What a crash, a full memory or a stranger would do to them."""
    for pod in manifests.servers:
        told = settings(manifests, pod)
        if told.get("appendonly") != "yes" or told.get("dir") != "/data" or "data" not in pod.claims:
            yield f"{pod.name} keeps no append-only file on a volume of its own"
        if told.get("maxmemory-policy") != "noeviction":
            yield f"{pod.name} throws keys away when it is full"
        if not 0 < _bytes(told.get("maxmemory", "0")) <= _MOST_OF_MEMORY * pod.resource("memory"):
            yield f"{pod.name}: maxmemory {told.get('maxmemory')} does not leave room for a rewrite"
        if "include" not in told:
            yield f"{pod.name} asks for no password"
        fsync = _RANK[told.get("appendfsync", "everysec")]
        asked = manifests.models.redis.durability if pod.name == "headrace-redis" else "everysec"
        if fsync < _ASKED[asked]:
            yield f"{pod.name} has appendfsync {told.get('appendfsync')}; models.yaml asks for durability {asked}"


def settings(manifests: Manifests, pod: Pod) -> dict[str, str]:
    """What a server is told, by its file and then its arguments."""
    command = [*pod.container.get("command", []), *pod.container.get("args", [])]
    told: dict[str, str] = {}
    for path, holder, key in manifests.mounts(pod):
        if path in command and holder in manifests.config_maps:
            lines = (line.split(maxsplit=1) for line in manifests.config_maps[holder][key].splitlines())
            told |= {line[0]: line[1].strip('"') for line in lines if line and not line[0].startswith("#")}
    for name, value in pairwise(command):
        if name.startswith("--"):
            told[name.removeprefix("--")] = value
    return told


def _bytes(size: str) -> float:
    """What a server takes `2gb` for."""
    return amount(size.lower().removesuffix("b").replace("k", "Ki").replace("m", "Mi").replace("g", "Gi"))
