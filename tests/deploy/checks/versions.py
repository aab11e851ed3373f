"""Versions that must agree: the images' with ours, Ray's with what is installed, the servers' with known holes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import ray

from deploy.kustomization import KUBERNETES
from deploy.manifests import Manifests
from headrace import __version__
from headrace.server.advisories import advisories_for

__all__ = ["findings", "image_faults"]

_PINS: Final = KUBERNETES.parents[1] / "constraints.txt"


def findings(manifests: Manifests) -> Iterator[str]:
    """What does not agree."""
    wanted = manifests.cluster.get("rayVersion")
    pinned = re.search(r"^ray==(.*)$", Path(_PINS).read_text("utf-8"), re.M)
    if wanted != ray.__version__ or pinned is None or wanted != pinned[1]:
        yield f"rayVersion is {wanted}; installed is {ray.__version__}, and pinned {pinned and pinned[1]}"
    for pod in manifests.pods:
        for container in pod.spec["containers"]:
            yield from (f"{pod.name}: {fault}" for fault in image_faults(container["image"]))
    if len({pod.container["image"] for pod in manifests.servers}) > 1:
        yield "the Redis servers are of different versions"


def image_faults(image: str) -> Iterator[str]:
    """What is wrong with an image's name."""
    name, _, tag = image.rpartition("/")[2].partition(":")
    if not tag or tag == "latest":
        yield f"the image {image} has no version"
    elif name in ("headrace-cpu", "headrace-cuda"):
        if tag != __version__:
            yield f"the image {image} is not of version {__version__}"
    elif name == "valkey" and (numbers := re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", tag)):
        version = int(numbers[1]), int(numbers[2]), int(numbers[3])
        yield from (f"the image {image} has known holes: {hole.names}" for hole in advisories_for("valkey", version))
    else:
        yield f"the image {image} is neither ours nor a release of Valkey"
