"""Variables that nobody reads: a misspelt one is passed over by everybody but us."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final
from unittest import mock

import ray

from deploy.manifests import Manifests
from headrace.errors import ConfigError
from headrace_cluster.config.settings import ServiceConfig, load_config

__all__ = ["findings", "unread"]

_OTHERS: Final = frozenset(
    {
        "HEADRACE_NATIVE",
        "HF_HOME",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
        "REDISCLI_AUTH",
        "XDG_CACHE_HOME",
    }
)


def findings(manifests: Manifests) -> Iterator[str]:
    """What is set in vain."""
    for pod in manifests.pods:
        yield from (f"{pod.name}: {fault}" for fault in unread(pod.environment.items(), manifests.models))


def unread(variables: Iterable[tuple[str, str | None]], config: ServiceConfig | None = None) -> Iterator[str]:
    """Which of these variables are none of ours, of Ray's, or of a short list.

    Args:
        variables: their names and values.
        config: what the service is told besides; None: some model.
    """
    for name, value in variables:
        if name.startswith("HEADRACE_") and name != "HEADRACE_NATIVE":
            yield from _ours(name, value or "", config)
        elif name.startswith("RAY_"):
            if name not in _of_ray():
                yield f"{name} is no variable of Ray's"
        elif name not in _OTHERS:
            yield f"{name} is read by nobody"


def _ours(name: str, value: str, config: ServiceConfig | None) -> Iterator[str]:
    told = (
        config.model_dump(mode="json", exclude_unset=True)
        if config
        else {"models": {"m": {"engine": {"kind": "echo"}}}}
    )
    others = {other: text for other, text in os.environ.items() if not other.startswith("HEADRACE_")}
    with mock.patch.dict(os.environ, {**others, name: value}, clear=True):
        try:
            load_config(told)
        except ConfigError as error:
            yield str(error)


@cache
def _of_ray() -> frozenset[str]:
    """Variables that Ray's code names."""
    root = Path(ray.__file__).parent
    files = [*root.glob("_private/**/*.py"), *root.glob("_common/**/*.py"), *root.glob("serve/_private/*.py")]
    found = {name for file in files for name in re.findall(r'"(RAY_[A-Za-z0-9_]+)"', file.read_text("utf-8"))}
    return frozenset(found)
